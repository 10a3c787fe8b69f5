"""What datasets/text_files.py promises, on files that are written here and the library's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from support.components import (
    build,
    real_bytes,
    same,
)
from xrun.errors import ComponentError


def test_text_files_lose_no_byte(tmp_path: Path) -> None:
    """Blocks hold every byte once, in the order of the files' names, with a 0 after each file; the
    rest has no label."""
    contents = {
        "b/two.txt": b"zwei" * 9,
        "a.txt": b"one",
        "c.txt": "drei é".encode(),
        "c.md": b"no",
    }
    for name, content in contents.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    train = build(
        "datasets",
        "text_files",
        root=str(tmp_path / "in"),
        pattern="*.txt",
        context=16,
        val_fraction=0,
    )["train"]
    items = train.__getitems__(list(range(len(train))))
    joined = b"".join(contents[name] + b"\0" for name in ("a.txt", "b/two.txt", "c.txt"))
    assert real_bytes(items) == joined
    assert len(train) == math.ceil(len(joined) / 16)
    assert all(item["input_ids"].shape == item["labels"].shape == (16,) for item in items)
    assert same(train[1], items[1])


def test_text_files_hold_out_whole_files(tmp_path: Path) -> None:
    """Every n-th file is in `val`, no file in both, and `revision` is a function of the content."""
    for i in range(10):
        (tmp_path / f"{i}.py").write_text(f"file {i}")
    args = {"root": str(tmp_path), "context": 8, "val_fraction": 0.2}
    splits = build("datasets", "text_files", **args)
    seen = {
        name: real_bytes(list(map(split.__getitem__, range(len(split)))))
        for name, split in splits.items()
    }
    assert seen["val"] == b"file 4\0file 9\0"
    assert seen["train"] == b"".join(b"file %d\0" % i for i in range(10) if i not in (4, 9))
    assert build("datasets", "text_files", **args)["train"].revision == splits["train"].revision
    (tmp_path / "0.py").write_text("changed")
    assert build("datasets", "text_files", **args)["train"].revision != splits["train"].revision


def test_text_files_without_a_folder_read_the_standard_library() -> None:
    """By default there is Python to learn from, up to the limit and not beyond."""
    splits = build("datasets", "text_files", limit_bytes=300_000)
    sizes = [split.size for split in splits.values()]
    assert 300_000 <= sum(sizes) < 300_200
    assert b"import" in real_bytes(splits["train"].__getitems__(range(50)))


def test_text_files_say_where_they_found_nothing(tmp_path: Path) -> None:
    """A folder without a matching file is named together with the pattern."""
    with pytest.raises(ComponentError, match=r"\*\.rst"):
        build("datasets", "text_files", root=str(tmp_path), pattern="*.rst")
