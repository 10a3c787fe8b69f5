"""What this process computes on: whether it is what was rented, what the bits of a step depend on
besides the recipe, and how much memory there is."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import accelerate
import torch

from ..errors import AcceleratorsMissing
from ..machine.driver import ask_driver
from ..machine.nodes import accelerators_of
from ..recipe.schema import Candidate, Recipe
from . import compiled

Capability = tuple[int, int]
"""A GPU's compute capability, such as (9, 0)."""
_NCCL_ELSEWHERE = ("NCCL_DEBUG", "NCCL_SOCKET_IFNAME")
_ARCHITECTURE = re.compile(r"\b(sm|compute)_(\d+)(\d)[af]?\b")


@dataclass(frozen=True)
class Build:
    """The build of torch that is installed, and what it sees: the GPUs with their names and
    capabilities, and the architectures that it has kernels for (`sm_90`, `compute_120`)."""

    version: str
    cuda: str | None = None
    architectures: tuple[str, ...] = ()
    gpus: tuple[tuple[str, Capability], ...] = ()

    def __str__(self) -> str:
        return f"torch {self.version}, " + (f"CUDA {self.cuda}" if self.cuda else "without CUDA")

    def serves(self, capability: Capability) -> bool:
        """Whether it has kernels for such a GPU: compiled ones run within a major version, from
        their minor version on; PTX on everything newer."""
        for kind, major, minor in _ARCHITECTURE.findall(" ".join(self.architectures)):
            made_for = int(major), int(minor)
            if made_for <= capability and (kind == "compute" or made_for[0] == capability[0]):
                return True
        return False

    def lacks(self, rented: int) -> str:
        """What is wrong where a node has rented so many accelerators; "" if nothing is."""
        if len(self.gpus) < rented:
            return f"torch sees {len(self.gpus)} of the {rented} accelerators that were rented"
        for name, capability in self.gpus if rented else ():
            if not self.serves(capability):
                number = ".".join(map(str, capability))
                return f"torch has no kernels for {name} (compute capability {number})"
        return ""


def build_here() -> Build:
    """What is installed here, and sees what is visible here."""
    cuda = torch.cuda
    # NVML, which `device_count` asks, counts GPUs that the driver cannot use with this CUDA.
    numbers = range(cuda.device_count()) if cuda.is_available() else ()
    gpus = tuple((cuda.get_device_name(n), cuda.get_device_capability(n)) for n in numbers)
    return Build(torch.__version__, torch.version.cuda, tuple(cuda.get_arch_list()), gpus)


def rented(candidates: tuple[Candidate, ...], environ: Mapping[str, str]) -> int:
    """How many accelerators this node has to have: as SkyPilot says; where it says none, what every
    candidate of the recipe asks for at least. 0 on a machine of one's own."""
    asked = min((each.count for each in candidates), default=0)
    return accelerators_of(environ) or (asked if environ.get("SKYPILOT_NODE_IPS") else 0)


def check_accelerators(recipe: Recipe, environ: Mapping[str, str]) -> None:
    """What was rented is there, before anything is built.

    Raises:
        AcceleratorsMissing: it is not, or torch has nothing that runs on it.
    """
    number = rented(recipe.hardware.any_of, environ)
    build = build_here() if number else Build("")
    if lacks := build.lacks(number):
        raise AcceleratorsMissing(
            f"{lacks}: {build}; {ask_driver()}. Nothing was trained here.",
            "The job goes to another machine. If every machine says this, compare the driver of the"
            " image with the build of torch (docs/decisions/0026-builds-of-torch.md).",
        )


def environment_of(
    device: torch.device, processes: int, compiles: bool = False, requirements: str = ""
) -> dict[str, Any]:
    """Everything that the bits of a step depend on besides the recipe and xrun's own arithmetic.

    torch's version has the build (`2.13.0+cu126`), and NCCL counts where gradients go through it.
    `requirements`: the versions of the libraries that the recipe adds.
    """
    cuda = device.type == "cuda"
    nccl = nccl_of(torch.cuda.nccl.version(), os.environ) if cuda and processes > 1 else ""
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "cuda": torch.version.cuda if cuda else None,
        **({"tf32": torch.backends.cudnn.allow_tf32} if cuda else {}),
        "threads": torch.get_num_threads(),
        "processes": processes,
        **({"nccl": nccl} if nccl else {}),
        **({"compile": compiled.VERSION} if compiles else {}),
        **({"requirements": requirements} if requirements else {}),
    }


def nccl_of(version: tuple[Any, ...], environ: Mapping[str, str]) -> str:
    """NCCL's version and settings, as `2.27.5 NCCL_ALGO=Ring`: by them it chooses in which order it
    sums.

    Not among them: what it writes down, and the network interface, whose name is the machine's.
    """
    names = sorted(name for name in environ if name.startswith("NCCL_"))
    counts = [name for name in names if not name.startswith(_NCCL_ELSEWHERE)]
    number = ".".join(map(str, version))
    return " ".join([number, *(f"{name}={environ[name]}" for name in counts)])


def memory_of(device: torch.device) -> str:
    """What kind of memory a micro-batch has to fit into."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} {properties.total_memory >> 30} GiB"
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{platform.machine()} {size >> 30} GiB"
