"""What lies beside an exported adapter so that it loads with one line, and that line.

peft's files name a base on the Hub. They do not say how many classes its new head has and what they
are called, nor how the base of a project's own is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint.frozen import digest_of, lines_of
from ..errors import ComponentError
from ..files import json_text, read_json
from ..recipe.schema import ModelRef, Recipe
from .companions import Companions
from .freezing import hold_base
from .instances import build_ref
from .warm_start import adapter_at, warm_start

ADAPTER = "adapter_config.json"
CLASSES = "class_names.json"
"""What has the names in folders of older versions; `config.json` has them now."""
_PIPELINES = {
    "ForSequenceClassification": ("text-classification", "tokenizer"),
    "ForTokenClassification": ("token-classification", "tokenizer"),
    "ForImageClassification": ("image-classification", "image_processor"),
    "ForAudioClassification": ("audio-classification", "feature_extractor"),
}
"""What transformers' classes with a head for classes end with: their pipelines, and what makes the
inputs there."""
_USE = """\
from peft import {name}
from transformers import AutoConfig, pipeline

config = AutoConfig.from_pretrained(FOLDER)
labels = {{"id2label": config.id2label, "label2id": config.label2id}}
model = {name}.from_pretrained(FOLDER, **labels, ignore_mismatched_sizes=True)
classify = pipeline("{task}", model=model, {inputs}=FOLDER)"""


def write_beside(folder: Path, model: Any, recipe: Recipe, companions: Companions) -> None:
    """Write what peft's files lack: the classes, or which component builds the base, from which
    seed, and the digest of its weights.

    A `config.json` also keeps transformers from taking the folder for an adapter of its own kind,
    which it loads with new weights in the head's place (docs/decisions/0057).
    """
    if _on_own(recipe):
        told = {
            "model_type": "xrun",
            "adapter": True,
            "seed": recipe.train.seed,
            "model": recipe.model.model_dump(mode="json"),
            "frozen": _digest(model),
            **companions.labels(),
        }
        (folder / "config.json").write_text(json_text(told, indent=1) + "\n")
    elif _pipeline_of(model):
        model.config.save_pretrained(folder)


def use_of(model: Any, recipe: Recipe) -> str:
    """The lines that load an adapter of this model; FOLDER is where its files lie."""
    if _on_own(recipe):
        return "import xrun\n\nmodel = xrun.load_model(FOLDER, project=PROJECT)"
    name = f"Auto{type(model).__name__}"
    if found := _pipeline_of(model):
        return _USE.format(name=name, task=found[0], inputs=found[1])
    return f"from peft import {name}\n\nmodel = {name}.from_pretrained(FOLDER)"


def _on_own(recipe: Recipe) -> bool:
    """Whether xrun has put the adapter onto what a component of a project's own builds."""
    return recipe.model.adapter is not None and recipe.model.name != "hub"


def load_alone(folder: Path, project: Path) -> nn.Module:
    """The adapter of a folder on its base.

    Raises:
        ComponentError: the component builds another base than the one under which it was trained.
    """
    import peft

    told = read_json(folder / "config.json", dict) or {}
    if told.get("adapter"):
        return _on_own_base(folder, project, told)
    task = peft.PeftConfig.from_pretrained(str(folder)).task_type
    kind: Any = getattr(peft, f"AutoPeftModelFor{_KINDS[task]}" if task else "AutoPeftModel")
    older = dict(enumerate(read_json(folder / CLASSES, list) or ()))
    names = {int(n): name for n, name in told.get("id2label", older).items()}
    if not names:
        return kind.from_pretrained(folder)
    labels = {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    return kind.from_pretrained(folder, **labels, ignore_mismatched_sizes=True)


_KINDS = {
    "CAUSAL_LM": "CausalLM",
    "FEATURE_EXTRACTION": "FeatureExtraction",
    "QUESTION_ANS": "QuestionAnswering",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
}


def _on_own_base(folder: Path, project: Path, told: dict[str, Any]) -> nn.Module:
    from peft import PeftModel

    ref = ModelRef.model_validate(told["model"])
    base = build_ref(ref, int(told["seed"]), project)
    source = ref.init_from
    if source and adapter_at(source, project) is None:
        warm_start(base, source, project)
    hold_base(base, ref)
    model = PeftModel.from_pretrained(base, folder)
    if _digest(model) != told["frozen"]:
        raise ComponentError(
            f"models/{ref.name}.py does not build the base weights here that the adapter in"
            f" {folder} was trained on.",
            "Use the run's project, its libraries and its model.init_from, or export it with"
            " model.adapter.merge: true.",
        )
    return model


def _digest(model: nn.Module) -> str:
    """The digest of the frozen weights. In a model that is loaded to be used nothing has gradients,
    so the names tell what is the adapter's."""
    own = ("lora_", "modules_to_save", "trainable_tokens")
    frozen = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in own)
    }
    return digest_of(lines_of(frozen))


def _pipeline_of(model: Any) -> tuple[str, str] | None:
    """The pipeline for an adapter's base, if that has a head for classes."""
    kind = type(model.get_base_model()).__name__
    return next((found for end, found in _PIPELINES.items() if kind.endswith(end)), None)
