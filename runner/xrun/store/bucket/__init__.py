"""State in a bucket."""
