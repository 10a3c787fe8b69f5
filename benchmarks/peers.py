"""Training loops of others: the same dataset, collate function, model, optimizer and batch as
xrun's, nothing saved or logged."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_collate

from xrun.training.optimizer import plain_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    """Until the GPU has done what it was given; processors have."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def installed() -> dict[str, Callable[[Work], float]]:
    """The loops of others whose library is here."""
    loops = {
        "accelerate": accelerate,
        "accelerate, checking": accelerate_checked,
        "lightning": lightning,
        "transformers": trainer,
    }
    return {name: loop for name, loop in loops.items() if find_spec(name.partition(",")[0])}


@dataclass
class Work:
    """What is trained; `steps` steps are made and the first `warm` of them not counted."""

    dataset: Any
    model: Callable[[], nn.Module]
    batch: int
    lr: float
    steps: int
    warm: int

    def loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.dataset, batch_size=self.batch, shuffle=True, collate_fn=default_collate
        )

    def built(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A model in training mode, and the optimizer that xrun takes for the recipe."""
        torch.use_deterministic_algorithms(False)
        torch.manual_seed(0)
        model = self.model().train().to(DEVICE)
        return model, torch.optim.AdamW(
            model.parameters(), lr=self.lr, weight_decay=0.0, fused=True
        )


class Watch:
    """Counts steps; `done()` after each one says whether it was the last."""

    def __init__(self, work: Work) -> None:
        self.work, self.count, self.began, self.ended = work, 0, 0.0, 0.0

    def done(self) -> bool:
        self.count += 1
        if self.count in (self.work.warm, self.work.steps):
            synchronize()
        if self.count == self.work.warm:
            self.began = time.perf_counter()
        self.ended = time.perf_counter()
        return self.count >= self.work.steps

    @property
    def seconds_per_step(self) -> float:
        return (self.ended - self.began) / (self.count - self.work.warm)


def _timed(work: Work, steps: Iterator[None]) -> float:
    watch = Watch(work)
    for _ in steps:
        if watch.done():
            break
    return watch.seconds_per_step


def raw(work: Work) -> float:
    """The loop of every tutorial; seconds per step."""
    return _timed(work, raw_steps(work))


def raw_plain(work: Work) -> float:
    """The same with the step of the optimizer that xrun takes; seconds per step."""
    return _timed(work, raw_steps(work, plain=True))


def raw_steps(work: Work, plain: bool = False) -> Iterator[None]:
    """The same, a step at a time; `plain` takes the optimizer's step as xrun does."""
    model, optimizer = work.built()
    step = plain_step(optimizer) if plain else optimizer.step
    for x, y in work.loader():
        optimizer.zero_grad()
        loss = cross_entropy(model(x.to(DEVICE)), y.to(DEVICE))
        loss.backward()
        step()
        yield


def accelerate(work: Work) -> float:
    """The loop of accelerate's documentation."""
    return _timed(work, accelerate_steps(work))


def accelerate_checked(work: Work) -> float:
    """The same, and like xrun it does not step on gradients that are not finite."""
    return _timed(work, accelerate_steps(work, checked=True))


def accelerate_steps(work: Work, checked: bool = False) -> Iterator[None]:
    """The same, a step at a time."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model, optimizer, loader = accelerator.prepare(*work.built(), work.loader())
    for x, y in loader:
        with accelerator.accumulate(model):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            accelerator.backward(loss)
            if checked:
                gradients = [p.grad for p in model.parameters()]
                nn.utils.get_total_norm(gradients, error_if_nonfinite=True)
            optimizer.step()
        yield


def lightning(work: Work) -> float:
    """Lightning's Trainer with everything optional switched off."""
    import lightning as library

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watch = Watch(work)

    class Module(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = work.built()

        def training_step(self, batch: Any, index: int) -> Any:
            return cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return self.optimizer

        def on_train_batch_end(self, *arguments: Any) -> None:
            watch.done()

    trainer = library.Trainer(
        max_steps=work.steps,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Module(), work.loader())
    return watch.seconds_per_step


def trainer(work: Work) -> float:
    """Hugging Face's Trainer, not clipping, with everything optional switched off."""
    # The folder `datasets` of this repository is not the library for which transformers takes it
    # where the library is missing.
    sys.modules["datasets"] = None  # type: ignore[assignment]  # Python's own mark for "not there"
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    watch = Watch(work)

    class Stepped(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            watch.done()

    class WithLoss(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any, labels: Any) -> Any:
            return {"loss": cross_entropy(self.model(x), labels)}

    def collate(items: list[Any]) -> Any:
        return dict(zip(("x", "labels"), default_collate(items), strict=True))

    model, optimizer = work.built()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=work.batch,
            max_steps=work.steps,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            max_grad_norm=0.0,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
        )
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        loop = Trainer(
            model=WithLoss(model),
            args=arguments,
            train_dataset=work.dataset,
            data_collator=collate,
            callbacks=[Stepped()],
            optimizers=(optimizer, schedule),
        )
        loop.remove_callback(PrinterCallback)
        loop.train()
    return watch.seconds_per_step
