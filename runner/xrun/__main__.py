"""`python -m xrun` is the `xrun` command."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working directory, whose `json.py` is not the one that is meant

from .cli import main

main()
