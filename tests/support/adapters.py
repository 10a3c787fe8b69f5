"""A project with a tiny Llama in a folder, as transformers writes it, a LoRA adapter on it, and
sentences of numbers to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .running import Project

VOCABULARY, WORDS = 61, 12
STEPS, GLOBAL, MICRO = 4, 4, 2
LORA = "{r: 4, lora_alpha: 8, target_modules: all-linear, lora_dropout: 0.1}"
ARGS = "model.adapter.args."
RECIPE = """\
name: tiny
model:
  name: hub
  args: {name: BASE, auto_class: AutoModelForCausalLM}
  adapter: {name: lora, args: LORA}
  frozen: fp32
dataset: {name: words}
task: language_modeling
train:
  steps: 4
  global_batch: 4
  micro_batch: 2
  optimizer: {name: adamw, lr: 0.01}
checkpoint: {every: 2 steps, keep: 3}
"""
DATASET = """\
import json, os, signal
from pathlib import Path

import torch

PROJECT = Path(__file__).parent.parent


class Words(torch.utils.data.Dataset):
    def __init__(self, n):
        generator = torch.Generator().manual_seed(n)
        self.words = torch.randint(0, 61, (n, 12), generator=generator)
        self.asked = 0

    def __len__(self):
        return len(self.words)

    def __getitem__(self, i):
        self.asked += 1
        trap, committed = PROJECT / "killed_at", [*PROJECT.glob("runs/*/committed.json")]
        steps = [json.loads(path.read_text())["step"] for path in committed]
        if trap.exists() and max(steps, default=-1) >= int(trap.read_text()):
            trap.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"input_ids": self.words[i], "labels": self.words[i]}


def build():
    return {"train": Words(40), "val": Words(9)}
"""


def llama(seed: int = 1, **config: Any) -> Any:
    """A Llama of 20,000 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads, **config))


def project_with_llama(root: Path) -> Project:
    """The project, with the base in `root/base`."""
    llama().save_pretrained(root / "base")
    text = RECIPE.replace("BASE", str(root / "base")).replace("LORA", LORA)
    project = Project(root, text)
    project.write("datasets/words.py", DATASET)
    return project
