"""State in a folder."""
