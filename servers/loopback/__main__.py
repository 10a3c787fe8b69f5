"""`python -m loopback [FOLDER]`: a Hub and a W&B for people, until Ctrl+C; what they are told
is kept in the folder."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

from .hub import Hub
from .wandb import Wandb


def main() -> None:
    """Start both and print what to paste into another terminal."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="xrun-servers-"))
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
