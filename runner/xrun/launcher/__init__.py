"""Plan -> a job, here or on a cloud."""
