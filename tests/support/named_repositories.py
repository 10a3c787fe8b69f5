"""What the recipes for clouds name on the Hub, in small: the same names, files and columns."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import transformers
from huggingface_hub import HfApi
from tokenizers import ByteLevelBPETokenizer

from loopback.hub import Hub

CONFIGS = """\
---
configs:
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
"""
END = "<|endoftext|>"


def fill(hub: Hub, folder: Path) -> None:
    """The repositories of recipes/gpt_h100.yaml and recipes/vit_a100.yaml."""
    made = {
        "google/vit-base-patch16-224-in21k": ("model", _vit),
        "ethz/food101": ("dataset", _food),
        "HuggingFaceFW/fineweb-edu": ("dataset", _web),
        "openai-community/gpt2": ("model", _gpt2),
    }
    for name, (kind, make) in made.items():
        own = folder / name
        own.mkdir(parents=True)
        make(own)
        api = HfApi(hub.url, token=f"hf_{name.partition('/')[0]}")
        api.create_repo(name, repo_type=kind, private=False)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=own)


def _vit(folder: Path) -> None:
    transformers.ViTConfig().save_pretrained(folder)


def _food(folder: Path) -> None:
    for name, count in {"train": 300, "validation": 100}.items():
        rows = {
            "image": [_photograph(i) for i in range(count)],
            "label": [i % 101 for i in range(count)],
        }
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(101)}
        _write(rows, folder / f"data/{name}-00000-of-00001.parquet", datasets.Features(kinds))


def _photograph(seed: int) -> dict[str, Any]:
    noise = np.random.default_rng(seed).integers(0, 255, (30, 38, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).resize((380, 300)).save(buffer, "JPEG")
    return {"bytes": buffer.getvalue(), "path": None}


def _web(folder: Path) -> None:
    for shard in range(3):
        rows = {"text": [f"{shard}.{i} {_text()[500 * (i % 40) :][:1500]}" for i in range(2500)]}
        _write(rows, folder / f"sample/10BT/{shard:03}_00000.parquet")
    (folder / "README.md").write_text(CONFIGS)


def _write(rows: dict[str, Any], path: Path, features: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def _gpt2(folder: Path) -> None:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([_text()], vocab_size=2000, special_tokens=[END])
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "GPT2TokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def _text() -> str:
    return Path(os.__file__).read_text()
