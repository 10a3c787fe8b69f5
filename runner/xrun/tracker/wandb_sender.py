"""The old name of `xrun.tracker.wandb.sender`, by which older supervisors start it."""

import sys

from .wandb.sender import main_and_exit

if __name__ == "__main__":
    main_and_exit(sys.argv[1:])
