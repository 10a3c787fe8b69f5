"""Runs as pages in a browser: one file that needs nothing else, or served here while they run."""
