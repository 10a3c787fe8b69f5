"""Recipes that fail after the money is spent, and what is said of each before.

Covers `xrun.launcher.rehearsal.stages`, `xrun.training.exported` and `xrun.training.miniature`.

Its processes cost seconds of imports each, so most of these are forked from one that has imported
everything (`support.running`); those at the end are real ones, by the command.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
import transformers

from loopback.hub import Hub
from support.hub_store import HUB_WARNINGS
from support.named_repositories import fill
from support.paths import ROOT, SOURCES
from support.rehearsing import warm
from support.running import RECIPE, Project, one_line
from xrun.errors import RecipeError, RehearsalFailed, XrunError
from xrun.launcher.bundle import pack
from xrun.launcher.rehearsal import remembered
from xrun.launcher.rehearsal.rehearse import Place, Rehearsal, lay_out

pytestmark = pytest.mark.once

STAGES = [
    "build",
    "first step",
    "evaluation",
    "save",
    "export",
    "restore in a new process",
    "second step",
    "second save",
    "second export",
    "load what was exported",
]


def rehearse(project: Project, folder: Path, *overrides: str) -> list[str]:
    """What a rehearsal of the project's recipe says."""
    plan = project.plan(*overrides)
    place = lay_out(pack(plan, []), Place(folder / "there", Path(sys.executable)))
    said: list[str] = []
    Rehearsal(plan, place, said.append, "digest", warm).run()
    return said


def stages_of(said: list[str]) -> list[str]:
    found = (re.fullmatch(r"  (\S.*?) +[\d.]+ s", line) for line in said)
    return [match[1] for match in found if match]


MODEL = """\
from torch import nn


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
"""
OWN = """\
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)
{more}

def build():
    return Own()
"""
DATA = """\
from pathlib import Path

import torch
{top}

class Points:
    def __init__(self, n):
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
        self.y = (self.x.sum(1) > 0).long()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])
{more}

def build():
    {first}
    return {{"train": Points(100), "val": Points(41)}}
"""
TOKENS = """\
import torch


def build():
    tokens = [torch.arange(i, i + 16) for i in range(40)]
    samples = [{"input_ids": each, "labels": each} for each in tokens]
    return {"train": samples, "val": samples}
"""
LANES = """\
import torch


class Lanes:
    num_shards, lanes, shuffle_block = 8, {lanes}, 5

    def shard(self, number):
        return iter(range(number, 400, 8))

    def transform(self, number):
        return torch.full((4,), number / 400), number % 3


def build():
    return {{"train": Lanes()}}
"""
LOSES_ITS_HEAD = """
    def save_pretrained(self, folder, **options):
        import json
        from safetensors.torch import save_file
        save_file({"layer.weight": self.layer.weight.detach()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "own"}))

    @classmethod
    def from_pretrained(cls, folder):
        from safetensors.torch import load_file
        model = cls()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model
"""
GROWS = """
    def forward(self, x):
        if not hasattr(self, "queue"):
            self.register_buffer("queue", x.detach().clone())
        self.queue = torch.cat([self.queue, x.detach()])
        return self.layer(x)
"""


def data(top: str = "", first: str = "pass", more: str = "") -> str:
    return DATA.format(top=top, first=first, more=more)


@dataclass(frozen=True)
class Wrong:
    """A project that fails, where and how: the stage (`check`: before), the exit code, and what is
    said of it."""

    stage: str
    code: int
    says: str
    model: str = MODEL
    dataset: str = data()
    overrides: tuple[str, ...] = ()


WRONG: Mapping[str, Wrong] = MappingProxyType(
    {
        "a module that is not there": Wrong(
            "build", 2, r"datasets/points\.py:4: ModuleNotFoundError: .*'no_such_lib'",
            dataset=data(top="import no_such_lib"),
        ),
        "a file that does not travel": Wrong(
            "build", 2, r"FileNotFoundError: .*weights\.csv.* \(at .*datasets/points\.py:19\)",
            dataset=data(first='(Path(__file__).parents[2] / "weights.csv").read_text()'),
        ),
        "a file that stays here": Wrong(
            "build", 2, r"/project/\.env is here, but does not travel with a job\.",
            dataset=data(first='(Path(__file__).parents[1] / ".env").read_text()'),
        ),
        "a tokenizer that is not there": Wrong(
            "build", 2, r"build\(\) failed: OSError: .*no-such/tokenizer/here",
            dataset=data(
                first="__import__('transformers').AutoTokenizer.from_pretrained("
                "'no-such/tokenizer/here')"
            ),
        ),
        "an unknown key": Wrong(
            "check", 2, r"train\.evaluate\.metric", overrides=("train.evaluate.metric=best",)
        ),
        "a wrong shape": Wrong(
            "first step", 2, r"mat1 and mat2 shapes cannot be multiplied \(2x4 and 5x3\)",
            model=MODEL.replace("nn.Linear(4, 8), nn.Linear(8, 3)", "nn.Linear(5, 3)"),
        ),
        "labels out of range": Wrong(
            "first step", 2, r"a label is \d, and there are the classes 0 to 2",
            dataset=data().replace("int(self.y[i])", "int(self.y[i]) + 3"),
        ),
        "one class": Wrong(
            "first step", 2, r"there is one logit for each label",
            model=MODEL.replace("nn.Linear(8, 3)", "nn.Linear(8, 1)"),
        ),
        "a metric that the model does not give": Wrong(
            "evaluation", 2, r"there is no metric 'f1'.* This task has loss",
            model=OWN.format(
                more="""
    def forward(self, x, y):
        return {"loss": nn.functional.cross_entropy(self.layer(x), y)}
"""
            ),
            overrides=("task=model", "train.evaluate={metric: f1, mode: max}"),
        ),
        "an evaluation that crashes": Wrong(
            "evaluation", 2, r"KeyError: 41 \(line 17\)",
            dataset=data(more="    def __getitem__(self, i):\n"
                         "        return self.x[i], {100: int(self.y[i])}[len(self)]\n"),
        ),
        "an export that fails": Wrong(
            "export", 2, r"ValueError: not today \(at .*models/line\.py:14\)",
            model=OWN.format(
                more="""
    def save_pretrained(self, folder, **options):
        raise ValueError("not today")
"""
            ),
        ),
        "a state that cannot be restored": Wrong(
            "restore in a new process", 5, r"",
            model=MODEL.replace("from torch", "import os\nfrom torch").replace(
                "nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))",
                'nn.Sequential(OrderedDict({f"layer{os.getpid()}": nn.Linear(4, 3)}))'
            ).replace("import os", "import os\nfrom collections import OrderedDict"),
        ),
        "a buffer that training makes": Wrong(
            "load what was exported", 2, r'Unexpected key\(s\) in state_dict: "queue"',
            model=OWN.format(more=GROWS),
        ),
        "an export that cannot be loaded": Wrong(
            "load what was exported", 2, r'Missing key\(s\) in state_dict: "layer\.bias"',
            model=OWN.format(more=LOSES_ITS_HEAD),
        ),
        "lanes that share no step of the run": Wrong(
            "build", 2, r"train\.global_batch: 8 samples cannot be shared equally by the 3 lanes",
            dataset=LANES.format(lanes=3),
        ),
        "a warmup longer than the data": Wrong(
            "after", 2, r"the warmup of 50 steps does not end before the run does, at step 26: 100"
            " samples are 13 steps an epoch",
            overrides=("train.steps=null", "train.epochs=2", "train.schedule.warmup_steps=50"),
        ),
    }
)  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_fails_on_the_machine_fails_before(name: str, tmp_path: Path) -> None:
    """In one sentence, with the stage, the line of the component and the run's own exit code."""
    (tmp_path / "project").mkdir()
    wrong, project = WRONG[name], Project(tmp_path / "project")
    project.write("models/line.py", wrong.model)
    project.write("datasets/points.py", wrong.dataset)
    project.write(".env", "WHERE=here")
    (tmp_path / "weights.csv").write_text("beside the project")
    with pytest.raises(XrunError) as no:
        rehearse(project, tmp_path, *wrong.overrides)
    told = str(no.value)
    assert no.value.exit_code == wrong.code, told
    assert one_line(told), told
    assert re.search(wrong.says, told), told
    if isinstance(no.value, RehearsalFailed) and wrong.stage != "after":
        assert f"failed in the stage `{wrong.stage}`: " in told, told
        assert str(tmp_path / "there" / "project") not in told
        log = Path(told.rpartition(": ")[2])
        assert log.parent == remembered.folder()
        assert str(tmp_path / "there" / "project") not in log.read_text()
    else:
        assert isinstance(no.value, RecipeError) == (wrong.stage == "check")


def test_a_recipe_that_is_right_goes_through_every_stage(tmp_path: Path) -> None:
    """And what was made smaller is said; nothing is left beside the recipe."""
    project = Project(tmp_path)
    said = rehearse(project, tmp_path)
    assert stages_of(said) == STAGES
    assert said[-1] == (
        "  made smaller: steps of 4 instead of 8 samples, in micro-batches of 2; evaluation on 4 of"
        " 41 samples"
    )
    assert not project.home.exists()


def test_more_lanes_than_a_small_step_has_samples_are_rehearsed(tmp_path: Path) -> None:
    """They share a step of the run, which has eight samples; a rehearsal's has four."""
    project = Project(tmp_path)
    project.write("datasets/points.py", LANES.format(lanes=8))
    without = [each for each in STAGES if each != "evaluation"]
    assert stages_of(rehearse(project, tmp_path)) == without


def test_a_large_base_is_exported_and_loaded_by_transformers(tmp_path: Path) -> None:
    """With few layers, from a configuration without weights; the tied head counts as there."""
    settings = {"n_embd": 512, "n_layer": 16, "n_head": 8, "n_positions": 16, "vocab_size": 8192}
    transformers.GPT2Config(**settings).save_pretrained(tmp_path / "base")
    project = Project(tmp_path)
    project.write("datasets/points.py", TOKENS)
    args = f"{{name: {tmp_path / 'base'}, auto_class: AutoModelForCausalLM}}"
    model = f"model={{name: hub, args: {args}}}"
    said = rehearse(project, tmp_path, model, "task=language_modeling")
    assert stages_of(said) == STAGES
    assert "its configuration with 2 of 16 layers and a width of 32 instead of 512" in said[-1]


TASKS = {
    "regression": ("nn.Linear(4, 1)", "self.x[i], self.x[i].sum()"),
    "multi_label": ("nn.Linear(4, 3)", "self.x[i], (self.x[i][:3] > 0).float()"),
    "token_classification": (
        "nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Linear(1, 3))",
        "self.x[i], (self.x[i] > 0).long()",
    ),
    "segmentation": (
        "nn.Conv2d(1, 2, 1)",
        "self.x[i].view(1, 2, 2), (self.x[i] > 0).long().view(2, 2)",
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_goes_through_every_stage(task: str, tmp_path: Path) -> None:
    model, sample = TASKS[task]
    project = Project(tmp_path)
    inner = "nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))"
    project.write("models/line.py", MODEL.replace(inner, f"nn.Sequential({model})"))
    project.write("datasets/points.py", data().replace("self.x[i], int(self.y[i])", sample))
    assert stages_of(rehearse(project, tmp_path, f"task={task}")) == STAGES


def test_a_dataset_without_val_is_not_evaluated(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("models/line.py", MODEL)
    project.write("datasets/points.py", data().replace(', "val": Points(41)', ""))
    assert stages_of(rehearse(project, tmp_path)) == [
        stage for stage in STAGES if "evaluation" not in stage
    ]


def test_what_does_not_fit_into_this_machine_is_tried_by_its_shapes(tmp_path: Path) -> None:
    """A model of a thousand billion parameters, of which no memory is taken; why is said."""
    project = Project(tmp_path)
    large = "nn.Linear(4, 10**6), nn.Linear(10**6, 10**6)"
    project.write("models/line.py", MODEL.replace("nn.Linear(4, 8)", large))
    said = rehearse(project, tmp_path)
    assert stages_of(said) == []
    assert re.fullmatch(
        r"  build: by shapes alone, since 1000\.\d billion parameters need \d+ GiB to be trained,"
        r" and this machine has \d+ GiB left",
        said[0],
    )


def test_files_that_only_a_machine_has_end_no_launch(tmp_path: Path) -> None:
    """What `files:` names lies elsewhere here, so its absence says nothing of the run."""
    project = Project(tmp_path)
    project.write("models/line.py", MODEL)
    project.write("datasets/points.py", data(first='open("/nowhere/here/data.csv")'))
    said = rehearse(project, tmp_path, "files={/nowhere/here: recipes}")
    assert said == [
        "  build: /nowhere/here of `files` is not on this machine; the rest is not rehearsed"
    ]
    with pytest.raises(RehearsalFailed, match="FileNotFoundError"):
        rehearse(project, tmp_path, "files={/elsewhere: recipes}")


def test_the_command_rehearses_what_would_travel(tmp_path: Path) -> None:
    """In real processes, which work in the packed project and find nothing of this machine there:
    no library that only this one has, no module that PYTHONPATH names. Once it went well, the same
    again takes no time."""
    project = Project(tmp_path, RECIPE)
    project.write("models/line.py", "import only_here\n" + MODEL)
    project.write(
        "datasets/points.py", data(first="assert Path.cwd() == Path(__file__).parents[1]")
    )
    project.write("elsewhere/only_here.py", "")
    hidden = {"PYTHONPATH": f"{SOURCES}{os.pathsep}{project.root / 'elsewhere'}"}
    done = project.xrun("rehearse", "recipes/tiny.yaml", environ=hidden)
    assert done.code == 2, done.out + done.err
    assert one_line(done.err)
    assert "models/line.py:1: ModuleNotFoundError: No module named 'only_here'" in done.err
    project.write("models/line.py", MODEL)
    done = project.xrun("rehearse", "recipes/tiny.yaml")
    assert done.code == 0, done.out + done.err
    assert stages_of(done.out.splitlines()) == ["environment", *STAGES]
    assert done.out.splitlines()[-1].endswith("not seen here: CUDA, a GPU's memory, speed")
    (once,) = project.xrun("rehearse", "recipes/tiny.yaml").out.splitlines()
    assert re.search(r"rehearsed 20\d\d-.* in \d+ s, nothing changed\.$", once)
    assert not project.home.exists()


@pytest.mark.soak
@pytest.mark.parametrize(
    "name",
    ["digits", "digits_mlp", "text_gpt", "image_folder", "table_regression", "diffusion"],
)
def test_shipped_recipes_are_rehearsed(name: str, tmp_path: Path) -> None:
    """Those that need no network, in real processes."""
    done = Project(tmp_path).xrun("rehearse", str(ROOT / "recipes" / f"{name}.yaml"))
    assert done.code == 0, done.out + done.err
    assert stages_of(done.out.splitlines()) == ["environment", *STAGES]


@pytest.mark.soak
@HUB_WARNINGS[0]
@HUB_WARNINGS[1]
@pytest.mark.parametrize("name", ["gpt_h100", "vit_a100", "llama_chat_a100"])
def test_recipes_for_clouds_are_rehearsed(name: str, tmp_path: Path) -> None:
    """With a Hub that has what they name: texts and photographs are streamed, the base is built of
    its configuration."""
    with Hub(tmp_path / "hub") as hub:
        fill(hub, tmp_path / "named")
        project = Project(tmp_path / "project")
        recipe = str(ROOT / "recipes" / f"{name}.yaml")
        done = project.xrun("rehearse", recipe, environ=hub.environ("me"), seconds=1200)
    assert done.code == 0, done.out + done.err
    assert stages_of(done.out.splitlines()) == ["environment", *STAGES]
