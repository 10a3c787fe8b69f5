"""Messages to people about what happens to a run."""
