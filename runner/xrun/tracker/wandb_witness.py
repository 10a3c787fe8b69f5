"""The old name of `xrun.tracker.wandb.witness`, by which older supervisors start it."""

import sys

from .wandb.witness import main

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
