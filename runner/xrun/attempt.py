"""The old name of `xrun.training.rank`, by which older supervisors start it."""

import sys

from .training.rank import main_and_exit

if __name__ == "__main__":
    main_and_exit(*sys.argv[1:])
