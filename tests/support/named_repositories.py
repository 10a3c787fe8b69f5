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
COUNTS = """\
---
dataset_info:
  splits:
{}---
"""
"""As the public pages of datasets say how many rows there are."""
END = "<|endoftext|>"
BEGIN = "<|begin_of_text|>"
TEMPLATE = """\
{{- bos_token }}{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim }}
{{- '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""


def fill(hub: Hub, folder: Path) -> None:
    """The repositories of recipes/gpt_h100.yaml, vit_a100.yaml and llama_chat_a100.yaml."""
    made = {
        "google/vit-base-patch16-224-in21k": ("model", _vit),
        "ethz/food101": ("dataset", _food),
        "HuggingFaceFW/fineweb-edu": ("dataset", _web),
        "openai-community/gpt2": ("model", _gpt2),
        "meta-llama/Llama-3.1-8B-Instruct": ("model", _llama),
        "HuggingFaceH4/ultrachat_200k": ("dataset", _conversations),
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
    counts = {"train": 75_750, "validation": 25_250}  # as the whole dataset has
    _counted(folder, counts)
    for name, count in {"train": 300, "validation": 100}.items():
        rows = {
            "image": [_photograph(i) for i in range(count)],
            "label": [i % 101 for i in range(count)],
        }
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(101)}
        _write(rows, folder / f"data/{name}-00000-of-00001.parquet", datasets.Features(kinds))


def _counted(folder: Path, counts: dict[str, int]) -> None:
    lines = (f"  - name: {name}\n    num_examples: {count}\n" for name, count in counts.items())
    (folder / "README.md").write_text(COUNTS.format("".join(lines)))


def _photograph(seed: int) -> dict[str, Any]:
    noise = np.random.default_rng(seed).integers(0, 255, (30, 38, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).resize((380, 300)).save(buffer, "JPEG")
    return {"bytes": buffer.getvalue(), "path": None}


def _web(folder: Path) -> None:
    for shard in range(8):  # one for each lane
        rows = {"text": [f"{shard}.{i} {_text()[500 * (i % 40) :][:1500]}" for i in range(1000)]}
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


def _llama(folder: Path) -> None:
    """The configuration of 8 billion parameters, without weights, and a small tokenizer."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    more = {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    transformers.LlamaConfig(
        **sizes,
        **heads,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_parameters={**rope, **more},
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([_text()], vocab_size=2000, special_tokens=[BEGIN, END])
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "chat_template": TEMPLATE}))


def _conversations(folder: Path) -> None:
    counts = {"train_sft": 207_865, "train_gen": 256_032, "test_sft": 23_110, "test_gen": 28_304}
    _counted(folder, counts)
    for split, count in {"train_sft": 300, "train_gen": 5, "test_sft": 80, "test_gen": 5}.items():
        rows = {
            "prompt": [f"Question {i}" for i in range(count)],
            "prompt_id": [str(i) for i in range(count)],
            "messages": [_turns(i) for i in range(count)],
        }
        _write(rows, folder / f"data/{split}-00000-of-00001.parquet")


def _turns(number: int) -> list[dict[str, str]]:
    said = _text()[200 * (number % 100) :][:1500]
    roles = ("user", "assistant") * (1 + number % 3)
    return [{"content": f"{number}: {said}", "role": role} for role in roles]


def _text() -> str:
    return Path(os.__file__).read_text()
