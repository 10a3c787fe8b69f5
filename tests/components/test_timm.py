"""What models/timm.py promises; with timm itself where it can be loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.components import build, same, seeded
from support.paths import ROOT
from xrun.errors import ComponentError


def library() -> Any:
    try:
        import timm
    except Exception as error:  # torchvision for another build of torch raises RuntimeError
        return pytest.skip(f"timm cannot be loaded here: {error}")
    return timm


def test_the_model_is_timms_own() -> None:
    """With the same weights from the same seed, for the wanted channels and classes, and it
    trains."""
    timm = library()
    args: dict[str, Any] = {"drop_path_rate": 0.1}
    own = seeded(
        3, lambda: build("models", "timm", name="resnet10t", classes=7, channels=1, args=args)
    )
    theirs = seeded(3, lambda: timm.create_model("resnet10t", num_classes=7, in_chans=1, **args))
    assert same(own.state_dict(), dict(theirs.state_dict()))
    assert own.training
    assert own(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_a_name_that_timm_lacks_is_told() -> None:
    library()
    with pytest.raises(ComponentError, match=r"no model 'resnet10tt'\. Did you mean resnet10t"):
        build("models", "timm", name="resnet10tt", classes=2)


def test_weights_are_safetensors_of_a_revision() -> None:
    """Of the tag that is named; a model that the Hub has no weights of is refused."""
    timm = library()
    scope: dict[str, Any] = {"__name__": "timm_component"}
    exec((ROOT / "models" / "timm.py").read_text(), scope)  # noqa: S102  the shipped component
    found = scope["weights"](timm, "resnet10t.c3_in1k", "abc")
    assert found == {
        "hf_hub_id": "timm/resnet10t.c3_in1k@abc",
        "hf_hub_filename": "model.safetensors",
    }
    with pytest.raises(ComponentError, match="no weights for resnet18d_x"):
        scope["weights"](timm, "resnet18d_x", None)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("raise ModuleNotFoundError(\"No module named 'timm'\")", "No module named 'timm'."),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "nms does not exist."),
    ],
)
def test_a_library_that_cannot_be_loaded_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, said: str
) -> None:
    """Where it is not there, and where its torchvision was built for another torch."""
    (tmp_path / "timm.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ComponentError) as error:
        build("models", "timm", name="resnet18", classes=2)
    assert f"{said} Install with: pip install 'xrun[timm]'" in str(error.value)
    assert str(error.value).startswith("models/timm: timm cannot be loaded: ")
