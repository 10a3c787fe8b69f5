"""What one accelerator computes at most, by the name that torch has for it.

From NVIDIA's data sheets: dense tensor FLOP/s in 16 bits with sums in 32, and FLOP/s in fp32
without TF32, which a recipe has to allow and which is half as fast as 16 bits.
"""

from __future__ import annotations

import re

_TERA = 1e12
# What stands in the name -> TFLOP/s in 16 bits, TFLOP/s in fp32; the first that matches counts.
_PEAKS = (
    (r"B200", 2250.0, 75.0),
    (r"H200 NVL", 835.0, 60.0),
    (r"H200|GH200", 989.0, 67.0),
    (r"H100 PCIe", 756.0, 51.0),
    (r"H100 NVL", 835.0, 60.0),
    (r"H100", 989.0, 67.0),
    (r"A100", 312.0, 19.5),
    (r"L40S", 362.0, 91.6),
    (r"L40", 181.0, 90.5),
    (r"L4", 121.0, 30.3),
    (r"A40", 149.7, 37.4),
    (r"A10", 125.0, 31.2),
    (r"RTX A6000", 154.8, 38.7),
    (r"T4", 65.0, 8.1),
    (r"V100-SXM\d", 125.0, 15.7),
    (r"V100-PCIE", 112.0, 14.0),
)
_ONLY_FP16 = ("T4", "V100")
"""Kinds whose tensor cores have neither bf16 nor TF32."""


def peak_flops(device: str, precision: str) -> float:
    """FLOP/s of one such device in `fp32`, `tf32`, `bf16` or `fp16`; 0.0 where no data sheet is
    known here.

    `device` is what `torch.cuda.get_device_name` says, such as `NVIDIA A100-SXM4-80GB`.
    """
    for pattern, tensor, plain in _PEAKS:
        if re.search(rf"(?<![\w-])({pattern})(?!\w)", device):
            old = pattern.startswith(_ONLY_FP16)
            single = plain if precision == "fp32" or old else tensor / 2
            emulated = precision == "bf16" and old
            return 0.0 if emulated else _TERA * (single if "32" in precision else tensor)
    return 0.0
