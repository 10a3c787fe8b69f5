"""What runs on a new machine before anything is installed."""
