"""What this machine is, what its cloud says of it, and what asks it to stop."""
