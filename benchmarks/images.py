"""Row 14: samples per second of an image fine-tuning, over Hugging Face's Trainer; the bytes of a
checkpoint, over those of what is trained; and whether a training that was interrupted ends with the
same weights.

Both train the same ViT of transformers in float32, read from a folder, on scikit-learn's digits as
pictures, 32 in a step, with AdamW and clipped gradients. Each has a process of its own and they
take turns; xrun commits every 20 steps, the Trainer saves nothing while it is measured.
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

from benchmarks.chat import BLOCK, WARM, committed, trained
from benchmarks.lab import Lab, StepClock, fresh, lab, process, run
from benchmarks.result import Row, main, median, spread
from benchmarks.vit import Turns
from xrun.run.plan import Plan
from xrun.supervisor.ranks import ON_PROCESSORS

TURNS = 10
"""Of a round."""
HALF, WHOLE = 8, 16
"""Steps after which the training that is compared is interrupted, and ends."""


def measure(quick: bool) -> Iterator[Row]:
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    with lab() as own:
        yield _measure(own, rounds=1 if quick else 3, turns=1 if quick else TURNS)


def _measure(own: Lab, rounds: int, turns: int) -> Row:
    base = own.root / "base"
    with process(functools.partial(_make_base, base), {}) as end:
        end.recv()
    plan = own.plan("images", "images", f"model.args.name={base}")
    seen = [_round(own, plan, turns, number) for number in range(rounds)]
    speed = [each["xrun"]["speed"] / each["trainer"]["speed"] for each in seen]
    last = seen[-1]
    size = {name: last[name]["saved"] / last[name]["trained"] for name in last}
    same = {}
    for name, work in (("xrun", _xrun_resumes), ("trainer", _trainer_resumes)):
        with process(functools.partial(work, own, fresh(plan)), ON_PROCESSORS) as end:
            same[name] = bool(end.recv())
    return Row(
        14,
        "image fine-tuning, samples/s over Hugging Face's Trainer",
        median(speed),
        1.0,
        "higher",
        {"trainer samples/s": median(each["trainer"]["speed"] for each in seen)},
        spread(speed),
        {
            "xrun_samples_per_s": median(each["xrun"]["speed"] for each in seen),
            "checkpoint_bytes": last["xrun"]["saved"],
            "checkpoint_over_trained_weights_and_moments": size["xrun"],
            "trainer_checkpoint_over_trained_weights_and_moments": size["trainer"],
            "interrupted_ends_with_the_same_bits": same["xrun"],
            "trainer_interrupted_ends_with_the_same_bits": same["trainer"],
        },
        rest_met=size["xrun"] <= 1.02 and same["xrun"],
    )


def _make_base(folder: Path, end: Connection) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4}
    config = ViTConfig(**sizes, num_attention_heads=3, image_size=32, patch_size=8, num_labels=10)
    ViTForImageClassification(config).save_pretrained(folder)
    end.send(True)


def _round(own: Lab, plan: Plan, turns: int, number: int) -> dict[str, dict[str, float]]:
    """Of both: `speed`, in samples per second, the bytes that a checkpoint has (`saved`), and those
    of what is trained with its two moments (`trained`)."""
    plan = fresh(plan)
    work = {
        "xrun": (functools.partial(_xrun, own, plan), ON_PROCESSORS),
        "trainer": (functools.partial(_trainer, own, plan), dict[str, str]()),
    }
    names = list(work)[:: 1 if number % 2 else -1]
    facts: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        ends = {name: stack.enter_context(process(*work[name])) for name in names}
        taken = dict.fromkeys(names, 0.0)
        for name in names:
            facts[name] = {"trained": ends[name].recv()}
        for turn in range(WARM + turns):
            for name in names if turn % 2 else names[::-1]:
                ends[name].send("go")
                taken[name] += ends[name].recv() * (turn >= WARM)
        for name in names:
            facts[name]["speed"] = BLOCK * turns * plan.global_batch / taken[name]
        facts["xrun"]["saved"] = committed(plan)
        ends["trainer"].send("")
        facts["trainer"]["saved"] = ends["trainer"].recv()
    return facts


def _xrun(own: Lab, plan: Plan, turns: Connection) -> None:
    training = own.training(plan)
    turns.send(trained(training.objective))
    run(training, Turns(turns, training.checkpointer))


def _trainer(own: Lab, plan: Plan, turns: Connection) -> None:
    from transformers import TrainerCallback

    folder = plan.folder / "trainer"

    class InTurns(TrainerCallback):  # type: ignore[misc]  # untyped
        began = 0.0

        def on_step_begin(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % BLOCK == 0:
                if not turns.recv():
                    loop._save_checkpoint(loop.model, None)
                    files = folder.rglob("*")
                    turns.send(sum(file.stat().st_size for file in files if file.is_file()))
                self.began = time.perf_counter()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % BLOCK == 0:
                turns.send(time.perf_counter() - self.began)

    steps = plan.load_recipe().train.steps
    loop = _loop(own, plan, folder, max_steps=steps, save_strategy="no", callbacks=[InTurns()])
    turns.send(trained(loop.model))
    loop.train()


def _loop(own: Lab, plan: Plan, folder: Path, callbacks: Any = (), **more: Any) -> Any:
    import torch
    from transformers import (
        AutoModelForImageClassification,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )

    from xrun.component import load_build

    recipe = plan.load_recipe()
    return Trainer(
        model=AutoModelForImageClassification.from_pretrained(recipe.model.args["name"]),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=recipe.train.global_batch,
            learning_rate=recipe.train.optimizer.lr,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            use_cpu=not torch.cuda.is_available(),
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            **more,
        ),
        train_dataset=load_build("datasets", "pictures", own.root)()["train"],
        data_collator=default_data_collator,
        callbacks=list(callbacks),
    )


def _xrun_resumes(own: Lab, plan: Plan, end: Connection) -> None:
    every = f"checkpoint.every={HALF} steps"
    base = plan.load_recipe().model.args["name"]
    whole, cut = (own.plan("images", n, f"model.args.name={base}", every) for n in ("whole", "cut"))
    straight = _after(own, whole, WHOLE)
    # Some steps after the commit, which are computed again.
    _after(own, cut, HALF + 4)
    end.send(_are_equal(straight, _after(own, cut, WHOLE)))


def _after(own: Lab, plan: Plan, step: int) -> Any:
    """A run's weights after a step; it goes on from its newest commit."""
    training = own.training(plan)
    run(training, StepClock(last=step - training.state.step))
    return training.state.model.state_dict()


def _trainer_resumes(own: Lab, plan: Plan, end: Connection) -> None:
    folder = plan.folder / "trainer"
    saves: dict[str, Any] = {"save_strategy": "steps", "save_steps": HALF, "max_steps": WHOLE}
    straight, again = (_loop(own, plan, folder, **saves) for _ in range(2))
    straight.train()
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{HALF}"))
    end.send(_are_equal(straight.model.state_dict(), again.model.state_dict()))


def _are_equal(one: Any, other: Any) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


if __name__ == "__main__":
    main(measure)
