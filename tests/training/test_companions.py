"""What goes with the weights, and every kind of exported model in the hands of people who have no
xrun.

Covers `xrun.training.model_card`.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn

import xrun
from support.paths import RECIPES, ROOT
from xrun.component import load_build
from xrun.errors import AttemptEnd, ComponentError
from xrun.recipe.load import load_recipe
from xrun.run.plan import Plan
from xrun.run.receipt import NO_RECEIPT, receipt_of
from xrun.run.record import AttemptRecord, Finished
from xrun.training.companions import Companions, companions_of
from xrun.training.export import write
from xrun.training.model_card import model_card

NAMES = ("cat", "dog", "bird")
FINISHED = Finished(step=10, samples=80, metrics={"val/loss": 0.5})


class Split:
    """A split with what is given as attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def of(**attributes: Any) -> Companions:
    return Companions.of(Split(**attributes), "datasets/points.py")


def plan_for(model: dict[str, Any]) -> Plan:
    recipe = load_recipe(RECIPES / "digits_mlp.yaml").model_dump(mode="json") | {"model": model}
    sources = {"sources": {"models/line.py": "ab"}}
    return Plan("r-12345678", "0" * 64, sources, recipe, "r.yaml", "/p", "/h", "me", version="0.1")


PLAN = plan_for({"name": "line", "args": {}})


def tokenizer() -> Any:
    """A word tokenizer that is trained on the spot."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "<eos>"])
    words.train_from_iterator(["spot machines come and go", "the run stays"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )


def gpt(vocab: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16}
    return GPT2LMHeadModel(
        GPT2Config(**sizes, vocab_size=vocab, bos_token_id=2, eos_token_id=2, pad_token_id=1)
    ).eval()


def test_class_names_are_texts_once_each() -> None:
    """What a split says of its classes is checked before anything is trained."""
    assert of(class_names=["a", "b"]).labels() == {
        "id2label": {0: "a", 1: "b"},
        "label2id": {"a": 0, "b": 1},
    }
    assert of().labels() == of(class_names=None).labels() == {}
    for wrong, said in (("ab", "a list of texts"), ([1], "a list of texts"), (["a", "a"], "twice")):
        with pytest.raises(ComponentError, match=said):
            of(class_names=wrong)
    with pytest.raises(ComponentError, match="the tokenizer of the split 'train' is a str"):
        of(tokenizer="gpt2")


def test_hugging_face_s_own_splits_have_their_names() -> None:
    """A dataset that is handed over as it is names its classes in its features."""
    features = datasets.Features(
        {"x": datasets.Value("int64"), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    rows = datasets.Dataset.from_dict({"x": [1], "label": [2]}, features=features)
    assert Companions.of(rows, "datasets/rows.py").class_names == NAMES


def test_outputs_without_a_class_keep_their_number() -> None:
    """More outputs than classes are all there; fewer are some other model's business."""
    companions = of(class_names=NAMES)
    assert list(companions.labels(4)["id2label"].values()) == [*NAMES, "LABEL_3"]
    assert companions.labels(2) == {}


def test_an_own_model_has_its_class_names(tmp_path: Path) -> None:
    """In its config.json, as transformers writes them."""
    write(tmp_path / "model", nn.Linear(4, 3), PLAN, FINISHED, (), of(class_names=NAMES))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "bird"}
    assert config["label2id"] == {"cat": 0, "dog": 1, "bird": 2}


def test_a_base_brings_its_tokenizer(tmp_path: Path) -> None:
    """What was trained from a base has the base's tokenizer, unless the dataset has another, or
    says that it has none."""
    base = tmp_path / "base"
    gpt(12).save_pretrained(base)
    tokenizer().save_pretrained(base)
    recipe = plan_for({"name": "hub", "args": {"name": str(base)}}).load_recipe()
    found = companions_of(Split(), recipe).tokenizer
    assert found("the run stays")["input_ids"] == tokenizer()("the run stays")["input_ids"]
    assert companions_of(Split(tokenizer=None), recipe).tokenizer is None
    own = tokenizer()
    assert companions_of(Split(tokenizer=own), recipe).tokenizer is own
    fresh = {"name": "hub", "args": {"name": str(base), "pretrained": False}}
    assert companions_of(Split(), plan_for(fresh).load_recipe()).tokenizer is None


def exported(folder: Path) -> dict[str, Any]:
    """Every kind of model, with what it computes here; what is to be found there."""
    import peft
    from diffusers import UNet2DModel
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertForTokenClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    words = tokenizer()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {**sizes, "intermediate_size": 8, "num_labels": 3}
    torch.manual_seed(0)
    text = BertForSequenceClassification(BertConfig(**small, vocab_size=len(words))).eval()
    image = ViTForImageClassification(ViTConfig(**small, image_size=16, patch_size=8)).eval()
    causal = gpt(len(words))
    causal.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    based = type(causal).from_pretrained(folder / "base")
    lora = peft.LoraConfig(
        r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    adapter = peft.get_peft_model(based, lora).eval()
    merged = peft.get_peft_model(type(causal).from_pretrained(folder / "base"), copy.copy(lora))
    two = BertForSequenceClassification(BertConfig(**{**small, "num_labels": 2}, vocab_size=99))
    two.save_pretrained(folder / "two")
    kept = type(two).from_pretrained(folder / "two", num_labels=3, ignore_mismatched_sizes=True)
    head = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    head.base_model_name_or_path = str(folder / "two")
    sorter = peft.get_peft_model(kept, head).eval()
    image.save_pretrained(folder / "eye")
    seer = type(image).from_pretrained(folder / "eye", num_labels=2, ignore_mismatched_sizes=True)
    sight = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    sight.base_model_name_or_path = str(folder / "eye")
    seer = peft.get_peft_model(seer, sight).eval()
    for p in (p for each in (adapter, merged, sorter, seer) for p in each.parameters()):
        if p.requires_grad:
            nn.init.normal_(p)
    merged = merged.merge_and_unload().eval()
    tags = BertForTokenClassification(BertConfig(**small, vocab_size=len(words))).eval()
    kind: Any = UNet2DModel  # it has no types
    unet = kind(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(4, 8), down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    images = load_build("datasets", "hub_images", ROOT).__globals__
    processor = images["Processor"](16, 3, [0.5] * 3, [0.25] * 3)
    with_names = of(class_names=NAMES, tokenizer=words)
    kinds = {
        "text": (text, with_names),
        "image": (image, of(class_names=NAMES, processor=processor)),
        "causal": (causal, of(tokenizer=words)),
        "adapter": (adapter, of(tokenizer=words)),
        "sorter": (sorter, with_names),
        "seer": (seer, of(class_names=["night", "day"], processor=processor)),
        "merged": (merged, of(tokenizer=words)),
        "tags": (tags, with_names),
        "unet": (unet, of()),
    }
    plan = plan_for({"name": "hub", "args": {"name": str(folder / "base")}})
    for name, (model, companions) in kinds.items():
        write(folder / name, model, plan, FINISHED, (), companions)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        said = text(**words("the run stays", return_tensors="pt")).logits
        return {
            "text": NAMES[int(said.argmax())],
            "causal": causal(ids).logits.flatten().tolist(),
            "adapter": adapter(ids).logits.flatten().tolist(),
            "merged": merged(ids).logits.flatten().tolist(),
            "sorter": NAMES[
                int(sorter(**words("the run stays", return_tensors="pt")).logits.argmax())
            ],
            "seer": ["night", "day"][int(seer(torch.full((1, 3, 16, 16), 2.0)).logits.argmax())],
            "tags": [NAMES[int(each)] for each in tags(ids).logits[0].argmax(1)],
            "unet": unet(torch.ones(1, 1, 8, 8), 3).sample.flatten().tolist(),
        }


STRANGER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from PIL import Image
from diffusers import UNet2DModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.models.clip import CLIPImageProcessorPil
folder, found = sys.argv[1] + "/", {}
found["text"] = pipeline("text-classification", model=folder + "text")("the run stays")[0]["label"]
# Where torchvision is installed the pipeline finds it by itself.
processor = CLIPImageProcessorPil.from_pretrained(folder + "image")
picture = Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3))
classify = pipeline("image-classification", model=folder + "image", image_processor=processor)
found["image"] = sorted(each["label"] for each in classify(picture))
found["pixels"] = processor(picture, return_tensors="pt")["pixel_values"].shape[1:]
write = pipeline("text-generation", model=folder + "causal")
found["words"] = write("spot machines", max_new_tokens=2, do_sample=False)[0]["generated_text"]
ids = torch.tensor([[3, 4, 5]])
def by_its_card(name):
    FOLDER = folder + name
    lines = open(FOLDER + "/README.md").read().split("```python\\n")[1].split("```")[0]
    exec(lines, given := {"FOLDER": FOLDER})
    return given
with torch.no_grad():
    for name in ("causal", "merged"):
        causal = AutoModelForCausalLM.from_pretrained(folder + name)
        found[name] = causal(ids).logits.flatten().tolist()
    found["adapter"] = by_its_card("adapter")["model"].eval()(ids).logits.flatten().tolist()
    found["sorter"] = by_its_card("sorter")["classify"]("the run stays")[0]["label"]
    # As above, the card's last line needs torchvision.
    seer = by_its_card("seer")["model"]
    look = pipeline("image-classification", model=seer, image_processor=processor)
    white = Image.fromarray(np.full((16, 16, 3), 255, dtype=np.uint8))
    found["seer"] = look(white)[0]["label"]
    tags = pipeline("token-classification", model=folder + "tags", ignore_labels=[])
    text = tags.tokenizer.decode([3, 4, 5])
    found["tags"] = [each["entity"] for each in tags(text)]
    unet = UNet2DModel.from_pretrained(folder + "unet")
    found["unet"] = unet(torch.ones(1, 1, 8, 8), 3).sample.flatten().tolist()
found["tokens"] = AutoTokenizer.from_pretrained(folder + "adapter")("the run")["input_ids"]
found["strangers"] = [name for name in sys.modules if name.partition(".")[0] == "xrun"]
print(json.dumps(found))
"""


def test_every_kind_is_ready_where_there_is_no_xrun(tmp_path: Path) -> None:
    """`pipeline()` answers with class names and words, and `from_pretrained` gives models that
    compute the same numbers, in a process that never imports xrun."""
    here = exported(tmp_path)
    command = [sys.executable, "-I", "-c", STRANGER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    assert there["strangers"] == []
    assert there["text"] == here["text"]
    assert there["image"] == sorted(NAMES)
    assert there["pixels"] == [3, 16, 16]
    assert there["words"].startswith("spot machines")
    assert there["tokens"] == tokenizer()("the run")["input_ids"]
    for name in ("sorter", "seer", "tags"):
        assert there[name] == here[name], name
    for name in ("causal", "adapter", "merged", "unet"):
        assert there[name] == pytest.approx(here[name], abs=1e-5), name
    cards = {path.parent.name: path.read_text() for path in tmp_path.glob("*/README.md")}
    told = {name: re.findall("library_name: (.*)", card)[0] for name, card in cards.items()}
    assert told == {
        **dict.fromkeys(("text", "image", "causal", "merged", "tags"), "transformers"),
        **dict.fromkeys(("adapter", "sorter", "seer"), "peft"),
        "unet": "diffusers",
    }
    older = shutil.copytree(tmp_path / "sorter", tmp_path / "older")
    (older / "config.json").rename(older / "elsewhere")
    (older / "class_names.json").write_text(json.dumps(NAMES))  # as it was written before
    for folder in (tmp_path / "sorter", older):
        model = xrun.load_model(folder)
        with torch.no_grad():
            said = int(model(**tokenizer()("the run stays", return_tensors="pt")).logits.argmax())
        assert model.config.id2label[said] == here["sorter"]
    assert "`adapter_model.safetensors`, SHA-256 `" in cards["adapter"]
    assert "`diffusion_pytorch_model.safetensors`, SHA-256 `" in cards["unet"]
    assert (tmp_path / "causal" / "generation_config.json").exists()


@pytest.mark.once
@pytest.mark.parametrize(
    ("store", "publish", "told"),
    [
        ("", "", "xrun reproduce .\nxrun xrun/recipe.yaml\n```\n\nBoth are typed in the folder of"),
        ("s3://our/runs", "", "xrun reproduce s3://our/runs/r-12345678\n"),
        ("s3://our/runs", "hub://me/r", "xrun reproduce hub://me/r\n"),
        ("hub://me/state", "", "xrun reproduce hub://me/state\n"),
    ],
)
def test_a_card_says_what_makes_its_model_again(store: str, publish: str, told: str) -> None:
    """By the address of the model itself, or standing in its folder."""
    card = model_card(
        replace(PLAN, store=store, publish=publish), FINISHED, [], NO_RECEIPT, ["w.safetensors"]
    )
    assert told in card
    assert f"`xrun verify {told.split()[2]}` checks" in card


@pytest.mark.once
def test_a_card_carries_the_receipt() -> None:
    """What each attempt took and cost, and what of it is a guess."""
    told = {"usd_per_hour": 6.0, "accelerators": "A100:8", "cloud": "aws", "spot": True}
    attempts = [
        AttemptRecord("a", started=1000.0, last_seen=4600.0, end=AttemptEnd.OUTSIDE, **told),
        AttemptRecord("b", started=9000.0, ended=10800.0, cloud="gcp"),
    ]
    card = carded(attempts)
    assert "* Cost: $9.50 for 1.58 h of machine time in 2 attempts.\n" in card
    assert "| 1 | aws spot | A100:8 | $6.00 | 1.08* | $6.50 | ≥ 0.00 | not known |\n" in card
    assert "| 2 | gcp | - | $6.00† | 0.50 | $3.00† | ≥ 0.00 | 0 steps |\n" in card
    assert "\\* Its end was not recorded" in card
    assert "† Its price is not known" in card
    nameless = [AttemptRecord("a", started=0.0, ended=9.0, cloud="gcp"), attempts[1]]
    card = carded(nameless)
    assert "* Cost: not known for 0.50 h of machine time in 2 attempts.\n" in card
    assert "| 1 | gcp | - | not known | 0.0025 | not known |" in card
    assert "Not included" not in card
    card = carded([AttemptRecord("a", started=0.0, ended=9.0)])
    assert "* Cost: nothing, on machines of one's own (0.0025 h of machine" in card
    assert "$" not in card.partition("## Use")[0].partition("Attempts:")[2]
    assert "Attempts: 1.\n" in carded([])


def carded(attempts: list[AttemptRecord]) -> str:
    """The card of a run of these attempts."""
    receipt = receipt_of(PLAN.run, attempts, 20_000.0)
    return model_card(PLAN, FINISHED, attempts, receipt, ["w.safetensors"])
