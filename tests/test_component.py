"""A component is found, read and checked without importing it, and imports under one name
everywhere."""

from __future__ import annotations

import ast
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xrun.component
from support.paths import ROOT, write
from xrun import components
from xrun.component import check_args, find, load_build, project_root, signature
from xrun.errors import ComponentError
from xrun.libraries import how_to_install

MODELS = sorted((ROOT / "models").glob("*.py"))
DATASETS = sorted((ROOT / "datasets").glob("*.py"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with two models, one of which takes part of the other."""
    write(
        tmp_path / "models" / "small.py",
        "from .parts import width\n\n\ndef build(n: int, deep: bool = False):\n    return"
        " width(n)\n",
    )
    write(tmp_path / "models" / "parts.py", "def width(n):\n    return 2 * n\n")
    write(
        tmp_path / "datasets" / "count.py",
        "def build(n=3):\n    return {'train': list(range(n))}\n",
    )
    return tmp_path


def build_of(tmp_path: Path, text: str) -> Any:
    return signature(write(tmp_path / "models" / "m.py", text))


# Where things lie


def test_files_named_like_the_folders_hide_none(project: Path) -> None:
    """A project's own `models.py` or `datasets.py` is another module than the folders."""
    write(project / "models.py", "raise RuntimeError('models.py')\n")
    write(project / "datasets.py", "raise RuntimeError('datasets.py')\n")
    assert load_build("models", "small", project)(n=3) == 6
    assert load_build("datasets", "count", project)() == {"train": [0, 1, 2]}


def test_project_of_a_recipe(tmp_path: Path) -> None:
    """The nearest pyproject.toml; without one the parent of `recipes/`; else the recipe's own
    folder."""
    recipe = tmp_path / "work" / "recipes" / "deep" / "r.yaml"
    recipe.parent.mkdir(parents=True)
    assert project_root(recipe) == tmp_path / "work"
    assert project_root(tmp_path / "r.yaml") == tmp_path
    write(tmp_path / "pyproject.toml", "")
    assert project_root(recipe) == tmp_path
    assert project_root(str(recipe)) == tmp_path


def test_project_comes_before_the_checkout(project: Path) -> None:
    """A project's file hides one of the same name that xrun brings along, and no other."""
    ours = find("models", "mlp", project)
    assert ours.parent.parent != project
    write(project / "models" / "mlp.py", "def build(): ...\n")
    assert find("models", "mlp", project) == project / "models" / "mlp.py"


def test_unknown_component_says_where_it_was_looked_for(project: Path) -> None:
    """An unknown name is told with a similar one and the folders searched."""
    with pytest.raises(ComponentError) as error:
        find("models", "smal", project)
    assert error.value.message == "there is no models/smal.py."
    assert error.value.hint.startswith("Did you mean `small`? Searched: ")
    assert str(project / "models") in error.value.hint


@pytest.mark.parametrize("name", ["../x", "a.b", "A", "", "é", "x\n", "1a", "a/b", "x" * 101])
def test_name_of_a_component_is_a_file_name(project: Path, name: str) -> None:
    """A name cannot lead out of the folder."""
    with pytest.raises(ComponentError, match="is not a component's name"):
        find("models", name, project)


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_package_in_the_project_is_refused(project: Path, kind: Any) -> None:
    """An `__init__.py` in the user's folder would hide a package of the same name, and is refused
    with this reason."""
    write(project / kind / "__init__.py", "")
    with pytest.raises(ComponentError, match="which would hide") as error:
        find("models", "small", project)
    assert error.value.hint == "Delete this file."


# Reading a signature


@pytest.mark.parametrize(
    "path", [*MODELS, *DATASETS], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_shipped_component_has_a_signature(path: Path) -> None:
    """Every component that xrun brings along can be read without its libraries, and says what it
    does."""
    read = signature(path)
    assert read.docstring
    assert all(parameter.annotation for parameter in read.parameters)


def test_signature(tmp_path: Path) -> None:
    """Names, defaults, annotations, `**kwargs`, the docstring and the line, with nothing run."""
    text = (
        "raise SystemExit\n\n\ndef build(a, b: int = 3, *, c: 'list[int]' = (1, 2), d=len('x'),"
        " **more):\n    'Says.'\n"
    )
    read = build_of(tmp_path, text)
    told = [(one.name, one.required, one.annotation) for one in read.parameters]
    assert told == [
        ("a", True, ""),
        ("b", False, "int"),
        ("c", False, "'list[int]'"),
        ("d", False, ""),
    ]
    assert [one.default for one in read.parameters[1:]] == [3, (1, 2), "len('x')"]
    assert (read.has_kwargs, read.docstring, read.line) == (True, "Says.", 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "m.py: it has no `build`."),
        ("def other(): ...\n", "m.py: it has no `build`."),
        ("def build(:\n", "m.py:1: invalid syntax."),
        ("x = 1\n  y = 2\n", "m.py:2: unexpected indent."),
        ("x = 1\n\nasync def build(): ...\n", "m.py:3: `build` is not a plain `def` here"),
        ("class build: ...\n", "m.py:1: `build` is not a plain `def` here"),
        ("from .other import build\n", "m.py:1: `build` is not a plain `def` here"),
        ("import x as build\n", "m.py:1: `build` is not a plain `def` here"),
        ("build = lambda: None\n", "m.py:1: `build` is not a plain `def` here"),
        ("def build(): ...\nbuild = cache(build)\n", "m.py:2: `build` is not a plain `def` here"),
        ("def build(a, /): ...\n", "m.py:1: `build` is called with names only."),
        ("def build(*a): ...\n", "m.py:1: `build` is called with names only."),
        ("x = '\0'\n", "m.py"),
    ],
)
def test_file_without_a_readable_build(tmp_path: Path, text: str, sentence: str) -> None:
    """What is not a component is told with the file and the line."""
    with pytest.raises(ComponentError) as error:
        build_of(tmp_path, text)
    assert sentence in error.value.message


def test_bytes_that_are_not_python(tmp_path: Path) -> None:
    """A file that is no text is refused like any other."""
    path = tmp_path / "m.py"
    path.write_bytes(b"\xff\xfe\x00def build(): ...")
    with pytest.raises(ComponentError):
        signature(path)


# Checking arguments


@pytest.mark.parametrize(
    ("annotation", "fits", "does_not"),
    [
        ("int", [1, -1], [True, 1.5, "1", None, [1]]),
        ("float", [1, 1.5], [True, "1.5", None]),
        ("str", ["x"], [1, None, True]),
        ("bool", [True, False], [1, 0, "true"]),
        ("dict", [{}], [[], "x"]),
        ("dict[str, int]", [{"a": 1}], [[]]),
        ("list", [[], [1, "x"]], ["x", {}]),
        ("list[int]", [[], [1, 2]], [[1.5], ["x"], 3]),
        ("Sequence[str]", [["x"]], ["x", [1]]),
        ("tuple[int, int]", [[1, 2]], [[1], [1, 2, 3], [1, "x"]]),
        ("tuple[float, ...]", [[], [1, 2.5]], [["x"]]),
        ("int | None", [1, None], ["x", 1.5]),
        ("Optional[int]", [1, None], ["x"]),
        ("typing.Union[int, str]", [1, "x"], [1.5]),
        ("Literal['a', 'b', 3]", ["a", 3], ["c", True, 3.0]),
        ("'int'", [1], ["x"]),
        ("list[int] | int", [1, [1]], ["x", ["x"]]),
        ("torch.dtype", ["anything", 3, None], []),
        ("Any", ["anything", 3, None], []),
        ("Callable[[int], str]", ["anything"], []),
        ("", ["anything", None], []),
    ],
)
def test_arguments_fit_their_annotation(
    tmp_path: Path, annotation: str, fits: list[Any], does_not: list[Any]
) -> None:
    """A value that obviously has the wrong type is refused; what cannot be told without running the
    file is let pass."""
    read = build_of(tmp_path, f"def build(x{': ' + annotation if annotation else ''}): ...\n")
    assert [value for value in fits if check_args(read, {"x": value})] == []
    assert [value for value in does_not if not check_args(read, {"x": value})] == []


def test_unknown_and_missing_arguments(tmp_path: Path) -> None:
    """Every wrong argument is told, with the one that was probably meant."""
    found = check_args(
        build_of(tmp_path, "def build(width: int, depth: int): ...\n"), {"widht": 3, "depth": "x"}
    )
    assert [str(problem) for problem in found] == [
        ": widht: `build` in m.py has no such argument. Did you mean `width`?",
        ": depth: `build` in m.py takes `int` (got 'x').",
        ": `build` in m.py needs the argument `width`. Add `args: {width: ...}`.",
    ]


@pytest.mark.parametrize("levels", [200, 400, 700, 3000])
@pytest.mark.parametrize(
    "written",
    [
        lambda n: "a: a" + ".a" * n + " = 1",
        lambda n: "a=a" + ".a" * n,
        lambda n: "a: " + "|".join(["int"] * n) + " = 1",
        lambda n: "a=" + "+".join(["1"] * n),
        lambda n: "a=" + "-" * n + "1",
        lambda n: "*, a: " + "x(y)" + "(y)" * n,
        lambda n: "**a: b" + "[b]" * n,
    ],
    ids="annotation default union sum signs calls kwargs".split(),
)
def test_a_signature_nested_however_deep_is_one_sentence(
    tmp_path: Path, written: Callable[[int], str], levels: int
) -> None:
    """It names the file and the line; Python's own limits show nowhere."""
    with pytest.raises(ComponentError) as error:
        build_of(tmp_path, f"\n\ndef build({written(levels)}): ...\n")
    assert str(error.value).startswith(f"{tmp_path / 'models' / 'm.py'}:")
    assert "\n" not in str(error.value)


def test_an_annotation_in_quotes_may_be_as_deep(tmp_path: Path) -> None:
    """What cannot be read accepts everything."""
    text = "|".join(["int"] * 5000)
    signature = build_of(tmp_path, f"def build(a: '{text}'): ...\n")
    assert check_args(signature, {"a": "text"}) == []


def test_a_component_is_no_data(tmp_path: Path) -> None:
    """A file that is too large is not read to its end."""
    path = write(tmp_path / "models" / "m.py", "def build(): ...\n")
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ComponentError, match=r"m\.py: .*larger than 1024 KiB"):
        signature(path)


def test_kwargs_take_every_name(tmp_path: Path) -> None:
    """A `build` with `**kwargs` may be given anything."""
    assert check_args(build_of(tmp_path, "def build(**more): ...\n"), {"anything": 1}) == []


@given(
    st.text(max_size=40),
    st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3),
)
def test_any_annotation_is_survived(annotation: str, value: Any) -> None:
    """Whatever stands in an annotation, the answer is yes or no."""
    assert xrun.component.Expected(annotation).accepts(value) in (True, False)


# Importing


def test_build_is_imported_under_one_name(project: Path) -> None:
    """`models/small.py` is `xrun.components.models.small`, with its relative imports."""
    build = load_build("models", "small", project)
    assert (build(3), build.__module__) == (6, "xrun.components.models.small")


def test_another_project_is_another_component(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A name means the file of the project that is asked for, also after another project's."""
    other = tmp_path_factory.mktemp("other")
    write(other / "models" / "small.py", "def build(n):\n    return -n\n")
    assert load_build("models", "small", project)(1) == 2
    assert load_build("models", "small", other)(1) == -1
    assert load_build("models", "small", project)(1) == 2


def test_build_travels_to_a_spawned_process(project: Path) -> None:
    """A new Python process finds the same component by its name, through XRUN_PROJECT."""
    load_build("datasets", "count", project)
    code = "import xrun.components.datasets.count as c; print(c.build(2), c.__file__)"
    folder = Path(components.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("} ")[1].strip() == str(project / "datasets" / "count.py")


def test_build_is_pickled_by_name(project: Path) -> None:
    """What a component defines survives pickling to a worker that was spawned."""
    context = multiprocessing.get_context("spawn")
    build = load_build("models", "small", project)
    with context.Pool(1) as pool:
        assert pool.apply(build, (4,)) == 8


@pytest.mark.parametrize(
    ("text", "sentence", "hint"),
    [
        (
            "x = 1\n\n1 / 0\n\n\ndef build(): ...\n",
            "broken.py:3: ZeroDivisionError: division by zero.",
            "",
        ),
        (
            "import no_such_library\n\n\ndef build(): ...\n",
            "broken.py:1: ModuleNotFoundError: No module named",
            how_to_install("no_such_library"),
        ),
        (  # it is here, and no extra brings another one
            "import numpy.no_such_part\n\n\ndef build(): ...\n",
            "broken.py:1: ModuleNotFoundError: No module named",
            "`numpy` is installed and has no `numpy.no_such_part`; another version may have it.",
        ),
        ("def build(:\n", "broken.py:1: SyntaxError: ", ""),
        (
            "build = 3\n",
            "broken.py: it has no `build`.",
            "A component is a file with `def build(...)` at its top level.",
        ),
    ],
)
def test_component_that_cannot_be_imported(
    project: Path, text: str, sentence: str, hint: str
) -> None:
    """An error while importing a component names its file, the line and the way out."""
    write(project / "models" / "broken.py", text)
    with pytest.raises(ComponentError) as error:
        load_build("models", "broken", project)
    assert sentence in error.value.message
    assert error.value.hint == hint


def test_roots_are_the_project_the_checkout_and_the_package(project: Path) -> None:
    """`__path__` holds the project first, then this checkout, then the package's own folder."""
    components.use_project(project)
    package = Path(components.__file__).parent
    assert components.__path__[0] == str(project)
    assert components.__path__[-1] == str(package)
    assert set(components.__path__[1:-1]) <= {str(ROOT)}


def test_component_imports_nothing_that_trains() -> None:
    """Reading components needs the standard library and nothing else."""
    tree = ast.parse(Path(xrun.component.__file__).read_text())
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    absolute = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    ]
    names |= {(node.module or "").split(".")[0] for node in absolute}
    assert names <= sys.stdlib_module_names


IMPORTING = """
import sys, threading, types
from xrun.components import use_project

done = threading.Event()


def imports():
    while not done.is_set():
        for number in range(2000):
            sys.modules[f"some.other{number}"] = types.ModuleType("other")
        for number in range(2000):
            del sys.modules[f"some.other{number}"]


thread = threading.Thread(target=imports)
thread.start()
try:
    for number in range(400):
        use_project(sys.argv[1 + number % 2])
finally:
    done.set()
    thread.join()
"""


def test_a_project_is_taken_while_another_thread_imports(tmp_path: Path) -> None:
    """A client of a store that imports in a thread of its own ends no attempt."""
    command = [sys.executable, "-c", IMPORTING, str(tmp_path / "one"), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
