"""Initial weights from a local file or folder, or from a repository on the Hugging Face Hub."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import TrainError

log = logging.getLogger("xrun")

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""What peft calls an adapter's file."""


def warm_start(model: nn.Module, source: str, project: Path) -> None:
    """Load every weight whose name and shape fit; the others keep their first values, and that is
    said.

    Raises:
        TrainError: there are no safetensors at `source`, or none of the weights fits.
    """
    found: dict[str, Tensor] = {}
    for path in weights_at(source, project):
        try:
            found |= load_file(path)
        except SafetensorError as error:
            raise TrainError(
                f"model.init_from: {path} is damaged: {error}.", "Fetch it again."
            ) from error
    own = model.state_dict()
    known = {name: _joined(tensor, own[name]) for name, tensor in found.items() if name in own}
    fitting = {name: tensor for name, tensor in known.items() if own[name].shape == tensor.shape}
    if not fitting:
        raise TrainError(
            f"model.init_from: none of the {len(found)} weights in {source} has a name and shape of"
            " this model.",
            f"The model has {', '.join(list(own)[:3])} ..., the file"
            f" {', '.join(list(found)[:3])} ...",
        )
    model.load_state_dict(fitting, strict=False)
    left = sorted(set(own) - set(fitting))
    log.info(
        "Warm start from %s: %d weights%s.",
        source,
        len(fitting),
        f", not {', '.join(left[:5])}" if left else "",
    )


def _joined(tensor: Tensor, own: Tensor) -> Tensor:
    """Complex numbers where the file has pairs of real ones, as `export` writes them."""
    pairs = own.is_complex() and not tensor.is_complex() and tensor.shape == (*own.shape, 2)
    # A copy: in a file they may lie where the processor does not take complex numbers from.
    return torch.view_as_complex(tensor.clone()) if pairs else tensor


def adapter_at(source: str, project: Path) -> Path | None:
    """The file of an adapter that peft has saved there; None for weights of another kind."""
    return next((p for p in weights_at(source, project) if p.name == ADAPTER_WEIGHTS), None)


def weights_at(source: str, project: Path) -> list[Path]:
    """The safetensors files of a local file or folder, or of a repository.

    Raises:
        TrainError: there are none.
    """
    local = (project / Path(source).expanduser()).resolve()
    if not local.exists():
        local = _download(source)
    files = [local] if local.is_file() else sorted(local.glob("*.safetensors"))
    if not files:
        raise TrainError(
            f"model.init_from: {local} holds no .safetensors file.", "Only safetensors are loaded."
        )
    return files


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=["*.safetensors"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TrainError(
            f"model.init_from: {source} is neither a local path nor a repository that can be read:"
            f" {error}",
            "Give a file, a folder, or owner/name[@revision].",
        ) from error
