"""The state of a run, saved beside training and restored."""
