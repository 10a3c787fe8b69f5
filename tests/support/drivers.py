"""A program named nvidia-smi that stands in for the one that every NVIDIA driver brings along."""

from __future__ import annotations

import json
from pathlib import Path

SMI = """\
#!/usr/bin/env python3
import json, sys

query = next((a.split("=", 1)[1] for a in sys.argv if a.startswith("--query-gpu=")), "")
assert query and "--format=csv,noheader" in sys.argv, sys.argv
told = json.loads({told!r})
if told["said"]:
    print(told["said"])
    sys.exit(9)
for gpu in told["gpus"]:
    print(", ".join(gpu[name] for name in query.split(",")))
"""


def stand_in(
    folder: Path,
    version: str = "",
    name: str = "NVIDIA H100 80GB HBM3",
    gpus: int = 1,
    capability: str = "9.0",
    said: str = "",
) -> str:
    """Put it into `folder`, with so many GPUs of one kind, or with a driver that only says
    something; returns the folder, for PATH."""
    gpu = {"driver_version": version, "name": name, "compute_cap": capability}
    program = folder / "nvidia-smi"
    folder.mkdir(exist_ok=True)
    program.write_text(SMI.format(told=json.dumps({"said": said, "gpus": [gpu] * gpus})))
    program.chmod(0o755)
    return str(folder)
