"""A one-machine cluster: Slurm, sshd and a SkyPilot API server, for tests of managed jobs that are
really preempted."""
