"""`python -m loopback [FOLDER]`: a Hub and a W&B for people, until Ctrl+C; what they are told
is kept in the folder."""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path

from .hub import Hub
from .wandb import Wandb


def main() -> None:
    """Start both and print what to paste into another terminal."""
    parser = argparse.ArgumentParser("python -m loopback", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="Default: a temporary one.")
    root = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="xrun-servers-"))
    with Hub(root / "hub") as hub, Wandb(root / "wandb") as wandb:
        print(f"A Hugging Face Hub and a W&B, in {root}. Ctrl+C ends them. In another terminal:\n")
        for name, value in {**hub.environ("me"), **wandb.environ("me")}.items():
            print(f"export {name}={value}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
