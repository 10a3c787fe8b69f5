"""`python -m xrun` is the `xrun` command."""

from .cli import main

main()
