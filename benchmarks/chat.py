"""Row 12: tokens per second of a LoRA fine-tuning on packed conversations, over TRL's SFTTrainer;
and the bytes of a checkpoint, over those of what is trained.

Both train the same Llama with the same adapter in float32 on the same conversations by the same
template, packed with documents kept apart, one row of at most 512 tokens in each step, with loss on
the assistant's turns and clipped gradients. Tokens that fill up do not count. Each has a process of
its own and they take turns; xrun commits every 20 steps, TRL saves nothing while it is measured.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab, fresh, lab, process, run
from benchmarks.result import Row, main, median, spread
from benchmarks.vit import Turns
from xrun.run.plan import Plan
from xrun.run.record import RunRecord
from xrun.supervisor.ranks import ON_PROCESSORS

BLOCK = 8
"""Steps of a turn, as `Turns` makes them."""
WARM = 2
"""Turns that are not counted."""
TURNS = 10
"""Of a round."""
ADAM = 3
"""Tensors of a trained weight's size: itself and two moments."""


def measure(quick: bool) -> Iterator[Row]:
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    with lab() as own:
        yield _measure(own, rounds=1 if quick else 3, turns=1 if quick else TURNS)


def _measure(own: Lab, rounds: int, turns: int) -> Row:
    seen = [_round(own, turns, number) for number in range(rounds)]
    speed = [each["xrun"]["speed"] / each["trl"]["speed"] for each in seen]
    size = {name: seen[-1][name]["saved"] / seen[-1][name]["trained"] for name in seen[-1]}
    return Row(
        12,
        "LoRA on packed conversations, tokens/s over TRL's SFTTrainer",
        median(speed),
        1.0,
        "higher",
        {"trl tokens/s": median(each["trl"]["speed"] for each in seen)},
        spread(speed),
        {
            "xrun_tokens_per_s": median(each["xrun"]["speed"] for each in seen),
            "checkpoint_bytes": seen[-1]["xrun"]["saved"],
            "checkpoint_over_trained_weights_and_moments": size["xrun"],
            "trl_checkpoint_over_trained_weights_and_moments": size["trl"],
        },
        rest_met=size["xrun"] <= 1.02,
    )


def _round(own: Lab, turns: int, number: int) -> dict[str, dict[str, float]]:
    """Of both: `speed`, in tokens per second, the bytes that a checkpoint has (`saved`), and those
    of what is trained with its two moments (`trained`)."""
    plan = fresh(own.plan("chat", "chat", f"dataset.args.name={_data()}"))
    work = {
        "xrun": (functools.partial(_xrun, own, plan), ON_PROCESSORS),
        "trl": (functools.partial(_trl, own, plan), dict[str, str]()),
    }
    names = list(work)[:: 1 if number % 2 else -1]
    with contextlib.ExitStack() as stack:
        ends = {name: stack.enter_context(process(*work[name])) for name in names}
        facts = {name: ends[name].recv() for name in names}
        taken = dict.fromkeys(names, 0.0)
        for turn in range(WARM + turns):
            for name in names if turn % 2 else names[::-1]:
                ends[name].send("go")
                taken[name] += ends[name].recv() * (turn >= WARM)
        for name in names:
            facts[name]["speed"] = BLOCK * turns * facts[name]["tokens"] / taken[name]
        facts["xrun"]["saved"] = committed(plan)
        ends["trl"].send("")
        facts["trl"]["saved"] = ends["trl"].recv()
    return facts


def _data() -> Path:
    return Path(__file__).parent.parent / "recipes" / "data" / "handbook.jsonl"


def committed(plan: Plan) -> int:
    """Bytes of the newest checkpoint."""
    from xrun.store.directory.store import DirectoryStore

    head = DirectoryStore(plan.folder / "state", plan.run, "reader", plan.owner).head()
    newest = RunRecord.of(head).checkpoints[-1]
    assert newest.step > 0
    return sum(file.size for file in newest.files.values())


def trained(model: Any) -> int:
    """Bytes of what is trained, with Adam's two moments."""
    return ADAM * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _xrun(own: Lab, plan: Plan, turns: Connection) -> None:
    training = own.training(plan)
    rows = training.loader.split
    tokens = float(rows.documents.lengths.sum()) / len(rows)
    turns.send({"tokens": tokens, "trained": trained(training.objective)})
    run(training, Turns(turns, training.checkpointer))


def _trl(own: Lab, plan: Plan, turns: Connection) -> None:
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from xrun.component import load_build

    recipe = plan.load_recipe()
    given = recipe.dataset.args
    tokenizer = load_build("datasets", "chat", own.root)(**given)["train"].tokenizer
    torch.manual_seed(0)
    model = load_build("models", "llama", own.root)(**recipe.model.args)
    assert recipe.model.adapter is not None

    class InTurns(TrainerCallback):  # type: ignore[misc]  # untyped
        began = 0.0

        def on_step_begin(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % BLOCK == 0:
                if not turns.recv():
                    loop._save_checkpoint(loop.model, None)
                    files = (plan.folder / "trl").rglob("*")
                    turns.send(sum(file.stat().st_size for file in files if file.is_file()))
                self.began = time.perf_counter()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % BLOCK == 0:
                turns.send(time.perf_counter() - self.began)

    loop = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(plan.folder / "trl"),
            max_length=given["context"],
            packing=True,
            assistant_only_loss=True,
            per_device_train_batch_size=1,
            learning_rate=recipe.train.optimizer.lr,
            lr_scheduler_type="constant",
            max_steps=recipe.train.steps,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=datasets.load_dataset("json", data_files=str(given["name"]), split="train"),
        processing_class=tokenizer,
        peft_config=LoraConfig(**recipe.model.adapter.args, task_type="CAUSAL_LM"),
        callbacks=[InTurns()],
    )
    lengths = [len(row) for row in loop.train_dataset["input_ids"]]
    turns.send({"tokens": sum(lengths) / len(lengths), "trained": trained(loop.model)})
    loop.train()


if __name__ == "__main__":
    main(measure)
