"""`Accelerators`: what one node has of them, as a person and every cloud writes it: `A100:8`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_UNSERVED = (
    (r"tpu-.+|tpu", "Google's TPUs"),
    (r"(trainium|inferentia).*", "AWS's Trainium and Inferentia"),
    (r"(gaudi|habana|hl-).*", "Intel's Gaudi"),
    (r"(mi\d|radeon|instinct).*", "AMD's GPUs (ROCm)"),
    (r"t4g", "a T4 beside an ARM processor"),
    (
        r"[kmp]\d+|v100.*|gtx.?(9|10)\d\d.*|titan.?[vx].*",
        "NVIDIA's GPUs before Turing (compute capability 7.5)",
    ),
)
"""What no build of torch that a machine installs (launcher/arrival/torch_build.py) runs on, by
SkyPilot's names in any case; docs/decisions/0026-builds-of-torch.md."""
PATTERN = r"^[^:\s]+(:[1-9][0-9]{0,3})?$"


@dataclass(frozen=True)
class Accelerators:
    """So many of one kind. `str()` gives back the text it was made from."""

    name: str
    count: int = 1
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text or f"{self.name}:{self.count}"

    @classmethod
    def parse(cls, text: str) -> Accelerators:
        """`A100:8`, or `A100` for one. Raises ValueError for anything else."""
        if not re.fullmatch(PATTERN, text):
            raise ValueError(f"{text!r} is not a name and a count")
        name, _, count = text.partition(":")
        return cls(name, int(count or 1), text)


def unserved(name: str) -> str:
    """Of what kind an accelerator is that no build of torch runs on; "" for all others."""
    kinds = (kind for names, kind in _UNSERVED if re.fullmatch(names, name, re.IGNORECASE))
    return next(kinds, "")
