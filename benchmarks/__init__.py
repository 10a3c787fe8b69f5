"""xrun and its peers side by side: `python -m benchmarks [ROW ...]`; docs/performance.md says what
each row means."""
