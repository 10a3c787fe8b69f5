"""Rows of a table (csv, tsv, parquet, jsonl): numbers are standardised, texts become categories, one column is the target.

All that is fitted (means, deviations, categories, classes) is fitted on the rows that are trained on, and on no other.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xrun.errors import ComponentError, did_you_mean

SKLEARN = "sklearn://"
TABLES = ("breast_cancer", "diabetes", "iris", "wine")
RULES = ("refuse", "drop", "mean", "median")
ENCODINGS = ("one_hot", "index")
MOST_INPUTS = 1000
"""A column with more different texts is a name or prose, of which one-hot inputs make no sense."""


READERS: dict[str, Any] = {
    ".csv": pd.read_csv,
    ".tsv": functools.partial(pd.read_csv, sep="\t"),
    ".parquet": pd.read_parquet,
    ".jsonl": functools.partial(pd.read_json, lines=True, dtype=False),
}


class Rows:
    """Pairs of inputs, float32 (inputs,), and the target; with `encoding: index` dicts of `numbers`, `categories` and `labels`.

    The target is a class's number, int64 (its name is in `class_names`), or a float32.
    """

    def __init__(self, columns: dict[str, Tensor], fitted: Fitted, revision: str) -> None:
        self.columns, self.revision = columns, revision
        self.features, self.cardinalities = fitted.features, fitted.cardinalities
        self.target_mean, self.target_std = fitted.target_mean, fitted.target_std
        if fitted.classes:
            self.class_names = [str(int(name) if isinstance(name, float) else name) for name in fitted.classes]

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        where = torch.as_tensor(indices)
        taken = {name: column[where].unbind() for name, column in self.columns.items()}
        if "inputs" in taken:
            return list(zip(taken["inputs"], taken["labels"], strict=True))
        return [dict(zip(taken, row, strict=True)) for row in zip(*taken.values(), strict=True)]


@dataclass(frozen=True)
class Fitted:
    """What the training rows say. `features` names the inputs in order, `cardinalities` counts each category column's numbers."""

    numbers: dict[str, tuple[float, float, float]]
    """By column: what stands in for a missing value, the mean, and the deviation."""
    categories: dict[str, list[str]]
    target: str
    classes: list[Any]
    target_mean: float
    target_std: float

    @property
    def features(self) -> list[str]:
        return [*self.numbers, *(f"{name}={text}" for name, texts in self.categories.items() for text in texts)]

    @property
    def cardinalities(self) -> list[int]:
        return [len(texts) + 1 for texts in self.categories.values()]


def fail(what: str, hint: str = "") -> ComponentError:
    return ComponentError(f"datasets/table: {what}", hint)


def read(file: str) -> tuple[pd.DataFrame, str]:
    """The table and the hash of its content."""
    if file.startswith(SKLEARN):
        return of_sklearn(file.removeprefix(SKLEARN))
    name = file.lower().removesuffix(".gz")
    reader = next((READERS[ending] for ending in READERS if name.endswith(ending)), None)
    if reader is None:
        raise fail(f"{file} is of a kind that it does not read.", f"It reads {', '.join(READERS)}, and these with .gz.")
    if not Path(file).is_file():
        raise fail(f"there is no file {file}.")
    try:
        frame = reader(file)
    except ValueError as error:  # pandas' and pyarrow's own are ones
        raise fail(f"{file} cannot be read: {error}.") from error
    frame.columns = frame.columns.map(str)
    return frame, hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()


def of_sklearn(name: str) -> tuple[pd.DataFrame, str]:
    """One of the tables that scikit-learn brings along; classes by their names."""
    if name not in TABLES:
        raise fail(f"there is no table {SKLEARN}{name}.", did_you_mean(name, TABLES) or f"There are: {', '.join(TABLES)}.")
    import sklearn.datasets

    raw = {"scaled": False} if name == "diabetes" else {}
    table = getattr(sklearn.datasets, f"load_{name}")(as_frame=True, **raw)
    frame: pd.DataFrame = table.frame
    if "target_names" in table:
        frame["target"] = [str(table.target_names[number]) for number in frame["target"]]
    return frame, hashlib.blake2b(frame.to_csv().encode(), digest_size=16).hexdigest()


def check_names(frame: pd.DataFrame, wanted: Iterable[str], argument: str) -> None:
    """Raises ComponentError for a column that is not there, with those that are."""
    known = [str(name) for name in frame.columns]
    for name in wanted:
        if name not in known:
            shown = ", ".join(known[:30]) + (", ..." if known[30:] else "")
            raise fail(f"{argument}: there is no column {name!r}.", f"{did_you_mean(name, known)} There are: {shown}.".strip())


def is_number(column: pd.Series[Any]) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))


def check_texts(column: pd.Series[Any]) -> None:
    """A column that holds no numbers holds texts."""
    odd = next((value for value in column.dropna() if not isinstance(value, str | bool)), None)
    if odd is not None:
        raise fail(
            f"the column {column.name!r} holds {type(odd).__name__}, and no numbers or texts.", "Leave it out: `ignore: [...]`."
        )


def without_missing(frame: pd.DataFrame, target: str, missing: str) -> pd.DataFrame:
    """The rows that are used; ComponentError where a value is missing, or infinite, and no rule says what then."""
    numbers = frame.select_dtypes("number")
    infinite = pd.DataFrame(np.isinf(numbers.to_numpy(dtype=float, na_value=np.nan)), frame.index, numbers.columns)
    if infinite.to_numpy().any():
        raise fail(f"{place(infinite)} is infinite.", "Correct it, or leave it empty and give `missing: mean`.")
    if missing == "drop":
        return frame.dropna()
    gaps = frame.isna() if missing == "refuse" else frame[[target]].isna()
    if gaps.to_numpy().any():
        hint = f"Give `missing:`, one of {', '.join(RULES[1:])}." if missing == "refuse" else "A target has to be there; `missing: drop`."
        raise fail(f"{place(gaps)} is missing.", f"{int(gaps.to_numpy().sum())} are missing in all. {hint}")
    return frame


def place(where: pd.DataFrame) -> str:
    """The first place that is true, as people count: rows from 1, without the header."""
    row, column = np.argwhere(where.to_numpy())[0]
    return f"row {int(row) + 1}, column {str(where.columns[column])!r}"


def fit(train: pd.DataFrame, target: str, categorical: list[str], missing: str, regression: bool, scales: tuple[bool, bool]) -> Fitted:
    """What the training rows say; `scales`: whether the inputs and the target are standardised."""
    numbers, categories = {}, {}
    for name in train.columns.drop(target):
        column = train[name]
        if name not in categorical and is_number(column):
            values = column.to_numpy(dtype=float, na_value=np.nan)
            if np.isnan(values).all():
                raise fail(f"the column {name!r} has no value in any row that is trained on.", f"Leave it out: `ignore: [{name}]`.")
            stand_in = float(np.nanmedian(values) if missing == "median" else np.nanmean(values))
            filled = np.where(np.isnan(values), stand_in, values)
            numbers[str(name)] = (stand_in, *(moments(filled) if scales[0] else (0.0, 1.0)))
        else:
            categories[str(name)] = sorted(column.dropna().map(str).unique())
    goal = train[target]
    classes = [] if regression else sorted(goal.unique().tolist())
    mean, std = moments(goal.to_numpy(dtype=float)) if regression and scales[1] else (0.0, 1.0)
    return Fitted(numbers, categories, target, classes, mean, std)


def moments(values: Any) -> tuple[float, float]:
    """Mean and deviation, 1 where all values are the same."""
    return float(values.mean()), float(values.std()) or 1.0


def tensors(frame: pd.DataFrame, fitted: Fitted, encoding: str) -> dict[str, Tensor]:
    """The rows as columns of tensors. A category that training does not have is none of its inputs, and number 0."""
    scaled = [
        (frame[name].to_numpy(dtype=float, na_value=np.nan), stand_in, mean, std) for name, (stand_in, mean, std) in fitted.numbers.items()
    ]
    columns = [(np.where(np.isnan(values), stand_in, values) - mean) / std for values, stand_in, mean, std in scaled]
    numbers = torch.tensor(np.stack(columns, 1) if columns else np.zeros((len(frame), 0)), dtype=torch.float32)
    codes = [codes_of(frame[name], texts) for name, texts in fitted.categories.items()]
    labels = labels_of(frame[fitted.target], fitted)
    if encoding == "index":
        categories = torch.stack(codes, 1) if codes else torch.zeros(len(frame), 0, dtype=torch.int64)
        return {"numbers": numbers, "categories": categories, "labels": labels}
    hot = [torch.nn.functional.one_hot(code, count)[:, 1:].float() for code, count in zip(codes, fitted.cardinalities, strict=True)]
    return {"inputs": torch.cat([numbers, *hot], 1), "labels": labels}


def codes_of(column: pd.Series[Any], texts: list[str]) -> Tensor:
    numbers = {text: number for number, text in enumerate(texts, 1)}
    return torch.tensor([0 if pd.isna(value) else numbers.get(str(value), 0) for value in column], dtype=torch.int64)


def labels_of(column: pd.Series[Any], fitted: Fitted) -> Tensor:
    if not fitted.classes:
        return torch.tensor((column.to_numpy(dtype=float) - fitted.target_mean) / fitted.target_std, dtype=torch.float32)
    numbers = {name: number for number, name in enumerate(fitted.classes)}
    if strange := sorted({str(name) for name in column.unique() if name not in numbers}):
        raise fail(f"the class {strange[0]!r} of {fitted.target!r} is held out, and no row that is trained on has it.")
    return torch.tensor([numbers[name] for name in column], dtype=torch.int64)


def is_regression(column: pd.Series[Any], regression: bool | None) -> bool:
    """As the recipe says, else: numbers with a fraction are a quantity, whole numbers and texts are classes."""
    if regression and not is_number(column):
        raise fail(f"regression: the target {column.name!r} holds no numbers.")
    is_float = bool(pd.api.types.is_float_dtype(column))
    if regression is False and is_float and bool((column % 1 != 0).any()):
        raise fail(f"regression: the target {column.name!r} holds numbers with a fraction, and classes are whole numbers or texts.")
    return is_float if regression is None else regression


def check_inputs(fitted: Fitted, encoding: str) -> None:
    """Raises ComponentError where there are none, or where a column makes too many."""
    if not fitted.features:
        raise fail("no column is left for inputs.")
    for name, texts in fitted.categories.items():
        if encoding == "one_hot" and len(texts) > MOST_INPUTS:
            hint = f"Leave it out (`ignore: [{name}]`), or give `encoding: index`."
            raise fail(f"the column {name!r} has {len(texts):,} different texts, each of which would be an input.", hint)


def parted(rows: pd.DataFrame, fraction: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to train on, and a random fraction that is held out."""
    order = np.random.RandomState(seed).permutation(len(rows))  # its numbers never change
    count = round(len(rows) * fraction)
    return rows.iloc[np.sort(order[count:])], rows.iloc[np.sort(order[:count])]


def chosen(frame: pd.DataFrame, target: str, given: dict[str, list[str]]) -> list[str]:
    """The columns that are used, the target last."""
    for argument, names in given.items():
        check_names(frame, names, argument)
    left_out = {target, *given["ignore"]}
    inputs = [name for name in given["columns"] or frame.columns if name not in left_out]
    for name in inputs:
        if not is_number(frame[name]):
            check_texts(frame[name])
    return [*inputs, target]


def build(
    file: Path,
    target: str,
    columns: list[str] | None = None,
    ignore: list[str] | None = None,
    categorical: list[str] | None = None,
    encoding: str = "one_hot",
    missing: str = "refuse",
    regression: bool | None = None,
    standardize: bool = True,
    standardize_target: bool = False,
    val_file: Path | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
) -> dict[str, Rows]:
    """`train` and `val` of a table, held in memory.

    `file` is .csv, .tsv, .parquet or .jsonl, from the project's folder on, or `sklearn://diabetes` (breast_cancer, iris, wine).
    Inputs are `columns`, or all but `target` and `ignore`: numbers, and for each category (texts, and what `categorical` names)
    one input, 1 or 0, in the order of `features`. With `encoding: index` a sample is a dict of `numbers` (float32),
    `categories` (int64, from 1; 0: none that training has) and `labels`. A target with fractions is a quantity (float32), whole
    numbers and texts are classes, unless `regression` says so. `missing`: `refuse`, `drop` the row, or the column's `mean` or
    `median` for a number and no category for a text. Without `val_file` a random `val_fraction` is held out (0: no `val`).
    """
    for argument, value, known in (("missing", missing, RULES), ("encoding", encoding, ENCODINGS)):
        if value not in known:
            raise fail(f"{argument} is one of {', '.join(known)} (got {value!r}).")
    frame, revision = read(str(file))
    given = {"target": [target], "columns": columns or [], "ignore": ignore or [], "categorical": categorical or []}
    used = chosen(frame, target, given)
    train = without_missing(frame[used], target, missing)
    if val_file is None:
        train, val = parted(train, val_fraction, split_seed)
    else:
        other, more = read(str(val_file))
        check_names(other, used, "val_file")
        val, revision = without_missing(other[used], target, missing), f"{revision} {more}"
    if not len(train):
        raise fail(f"{file} has no row to train on.")
    quantity = is_regression(train[target], regression)
    fitted = fit(train, target, given["categorical"], missing, quantity, (standardize, standardize_target))
    check_inputs(fitted, encoding)
    splits = {"train": train, "val": val} if len(val) else {"train": train}
    return {name: Rows(tensors(part, fitted, encoding), fitted, revision) for name, part in splits.items()}
