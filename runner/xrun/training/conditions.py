"""What this process computes on: what the bits of a step depend on besides the recipe, and how much
memory there is."""

from __future__ import annotations

import os
import platform
from typing import Any

import accelerate
import torch


def environment_of(device: torch.device, processes: int) -> dict[str, Any]:
    """Everything that the bits of a step depend on besides the recipe and xrun's own arithmetic."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def memory_of(device: torch.device) -> str:
    """What kind of memory a micro-batch has to fit into."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} {properties.total_memory >> 30} GiB"
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{platform.machine()} {size >> 30} GiB"
