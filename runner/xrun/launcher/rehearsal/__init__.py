"""A run in miniature on this machine, before money is spent."""
