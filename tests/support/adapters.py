"""A project with a tiny Llama in a folder, as transformers writes it, a LoRA adapter on it,
sentences of numbers to train on, and the loop that a person would write by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xrun.component import load_build
from xrun.data.loader import Fetch
from xrun.data.randomness import INIT, LOOP, seed_generators
from xrun.data.sampler import Sampler
from xrun.errors import CheckpointError
from xrun.run.plan import Plan

from .in_process import attempt, train
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


def plain_loop(project: Project, plan: Plan, base: Any, bf16: bool = False) -> Any:
    """What a person writes by hand with torch and peft, on the same samples with the same seeds."""
    import peft

    recipe = plan.load_recipe()
    assert recipe.model.adapter is not None
    seed_generators(0, INIT, 3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **recipe.model.adapter.args)
    model = peft.get_peft_model(base.train(), config)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0, fused=True)
    split = load_build("datasets", "words", project.root)()["train"]
    fetch = Fetch(split, 0)
    steps = list(Sampler(len(split), GLOBAL, MICRO, 0).steps(0, STEPS, 0, 1))
    for step in range(STEPS):
        pieces = [piece for piece in steps if piece.step == step]
        optimizer.zero_grad()
        batches = [fetch[piece][1] for piece in pieces]
        count = sum(batch["labels"][:, 1:].numel() for batch in batches)
        for piece, batch in zip(pieces, batches, strict=True):
            seed_generators(0, LOOP, piece.step, piece.slot)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(input_ids=batch["input_ids"]).logits
            said, labels = logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten()
            loss = nn.functional.cross_entropy(said, labels, reduction="sum")
            loss.backward(torch.tensor(1 / count))
        optimizer.step()
    return model


def base_of(project: Project, **options: Any) -> Any:
    """The base as transformers loads it."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(project.root / "base", **options)


def refuses_another_base(plan: Plan, base: Path) -> None:
    """Another base in the folder ends an attempt before a step, and says what to type; with the
    old one the run goes on."""
    with attempt(plan, "a1") as training:
        training.steps = 2
        training.export = lambda *_: None
        training.run()
    llama(seed=2).save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 2 was trained with.*--again"):
        train(plan, "a2")
    llama(seed=1).save_pretrained(base)
    assert train(plan, "a3").state.step == STEPS
