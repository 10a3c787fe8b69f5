"""Where configuration and metrics go."""
