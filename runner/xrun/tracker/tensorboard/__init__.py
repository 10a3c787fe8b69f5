"""The tracker for TensorBoard: event files that are a function of the run's points."""
