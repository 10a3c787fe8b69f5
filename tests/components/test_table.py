"""What datasets/table.py promises, with pandas and scikit-learn as the oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from support.components import build, same
from xrun.errors import ComponentError

CITIES = ["Rome", "Oslo", "Lima"]


def frame(rows: int = 40) -> pd.DataFrame:
    random = np.random.RandomState(0)
    return pd.DataFrame(
        {
            "age": random.randint(18, 80, rows),
            "height": random.normal(170, 10, rows),
            "city": [CITIES[n % 3] for n in range(rows)],
            "member": random.rand(rows) < 0.5,
            "price": random.normal(100, 20, rows),
            "grade": ["low", "high"] * (rows // 2),
        }
    )


def table(folder: Path, content: pd.DataFrame | None = None, name: str = "t.csv") -> Path:
    (frame() if content is None else content).to_csv(folder / name, index=False)
    return folder / name


def inputs(split: Any) -> torch.Tensor:
    return torch.stack([x for x, _ in split])


def labels(split: Any) -> torch.Tensor:
    return torch.stack([y for _, y in split])


def refused(said: str, file: Path | str, target: str = "price", **args: Any) -> None:
    with pytest.raises(ComponentError, match=said):
        build("datasets", "table", file=file, target=target, **args)


def test_inputs_are_those_of_scikit_learn(tmp_path: Path) -> None:
    """Standardised by the training rows alone, categories one by one; the held-out rows are the
    other ones."""
    args = {"file": table(tmp_path), "target": "price", "ignore": ["grade"], "val_fraction": 0.25}
    splits = build("datasets", "table", **args)
    whole = frame()
    prices = whole["price"].to_numpy()
    rows = {
        side: [int(np.abs(prices - float(y)).argmin()) for y in labels(split)]
        for side, split in splits.items()
    }
    assert sorted(rows["train"] + rows["val"]) == list(range(40))
    assert len(rows["val"]) == 10
    numbers = whole[["age", "height", "member"]].astype(float)
    scaler = StandardScaler().fit(numbers.iloc[rows["train"]])
    encoder = OneHotEncoder(sparse_output=False).fit(whole[["city"]].iloc[rows["train"]])
    for side, split in splits.items():
        own, towns = numbers.iloc[rows[side]], whole[["city"]].iloc[rows[side]]
        expected = np.hstack([scaler.transform(own), encoder.transform(towns)])
        assert inputs(split).dtype == labels(split).dtype == torch.float32
        assert np.allclose(inputs(split), expected, atol=1e-5)
    names = ["age", "height", "member", "city=Lima", "city=Oslo", "city=Rome"]
    assert splits["train"].features == names
    again = build("datasets", "table", **args)
    assert same(list(again["train"]), list(splits["train"]))


def test_every_kind_of_file_holds_the_same(tmp_path: Path) -> None:
    """csv, tsv, parquet, jsonl and compressed csv give the same samples, bit for bit."""
    whole = frame()
    whole.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    whole.to_csv(tmp_path / "t.csv.gz", index=False)
    whole.to_parquet(tmp_path / "t.parquet")
    whole.to_json(tmp_path / "t.jsonl", orient="records", lines=True, double_precision=15)
    first = build("datasets", "table", file=table(tmp_path), target="grade")["train"]
    for name in ("t.tsv", "t.csv.gz", "t.parquet", "t.jsonl"):
        other = build("datasets", "table", file=tmp_path / name, target="grade")["train"]
        assert torch.allclose(inputs(other), inputs(first), atol=1e-6)
        assert torch.equal(labels(other), labels(first))
        assert other.revision != first.revision


@pytest.mark.parametrize(
    ("target", "args", "names", "dtype"),
    [
        ("grade", {}, ["high", "low"], torch.int64),
        ("member", {}, ["False", "True"], torch.int64),
        ("price", {}, None, torch.float32),
        ("age", {"regression": True}, None, torch.float32),
    ],
)
def test_the_target_says_what_it_is(
    tmp_path: Path, target: str, args: dict[str, Any], names: list[str] | None, dtype: Any
) -> None:
    """Texts and whole numbers are classes with names, fractions a quantity, or as the recipe
    says."""
    train = build("datasets", "table", file=table(tmp_path), target=target, **args)["train"]
    assert getattr(train, "class_names", None) == names
    assert labels(train).dtype == dtype
    if names:
        column = frame()[target].map(str).tolist()
        assert sorted(set(labels(train).tolist())) == list(range(len(names)))
        assert set(column) == set(names)


def test_classes_may_have_gaps(tmp_path: Path) -> None:
    """Whole numbers become 0, 1, ... in their order, also where a missing one made them floats."""
    whole = frame(6).assign(code=[30, 7, 7, 30, None, 9])
    args = {"target": "code", "missing": "drop", "regression": False, "val_fraction": 0.0}
    train = build("datasets", "table", file=table(tmp_path, whole), **args)["train"]
    assert train.class_names == ["7", "9", "30"]
    assert labels(train).tolist() == [2, 0, 0, 2, 1]


def test_a_quantity_can_be_standardised(tmp_path: Path) -> None:
    """By the training rows; the split says how to go back."""
    args = {"file": table(tmp_path), "target": "price", "ignore": ["grade", "city"]}
    plain = build("datasets", "table", **args)
    scaled = build("datasets", "table", **args, standardize_target=True)
    train = scaled["train"]
    assert labels(train).mean().abs() < 1e-6
    assert labels(train).std(correction=0) == pytest.approx(1, rel=1e-5)
    back = labels(scaled["val"]) * train.target_std + train.target_mean
    assert torch.allclose(back, labels(plain["val"]), rtol=1e-5)


def test_categories_have_numbers(tmp_path: Path) -> None:
    """With `encoding: index`: from 1 in the order of their texts, 0 for one that training lacks;
    numbers may be named as categories."""
    file = table(tmp_path)
    other = table(tmp_path, frame(4).assign(city=["Oslo", "Bonn", "Lima", "Rome"]), "v.csv")
    splits = build(
        "datasets", "table", file=file, target="grade", columns=["city", "height", "age"],
        categorical=["age"], encoding="index", val_file=other,
    )  # fmt: skip
    sample = splits["val"][0]
    assert set(sample) == {"numbers", "categories", "labels"}
    assert [row["categories"][0].item() for row in splits["val"]] == [2, 0, 1, 3]
    ages = sorted(map(str, set(frame()["age"])))
    assert splits["val"][3]["categories"][1] == ages.index(str(frame(4)["age"][3])) + 1
    assert splits["train"].cardinalities == [4, len(ages) + 1]
    assert sample["numbers"].shape == (1,)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_missing_numbers_are_filled_by_the_training_rows(tmp_path: Path, rule: str) -> None:
    """As scikit-learn's imputer does before it scales; a missing text is no category."""
    whole = frame()
    whole.loc[[3, 8], "height"] = None
    whole.loc[3, "city"] = None
    args = {"target": "price", "columns": ["height", "city"], "val_fraction": 0.0}
    train = build("datasets", "table", file=table(tmp_path, whole), missing=rule, **args)["train"]
    filled = SimpleImputer(strategy=rule).fit_transform(whole[["height"]])
    assert np.allclose(inputs(train)[:, :1], StandardScaler().fit_transform(filled), atol=1e-5)
    assert inputs(train)[3, 1:].tolist() == [0, 0, 0]


def test_rows_with_gaps_can_be_dropped(tmp_path: Path) -> None:
    whole = frame()
    whole.loc[[3, 8], "height"] = None
    whole.loc[5, "price"] = None
    args = {"file": table(tmp_path, whole), "target": "price", "missing": "drop"}
    assert len(build("datasets", "table", **args, val_fraction=0.0)["train"]) == 37


def test_missing_values_are_refused_by_row_and_column(tmp_path: Path) -> None:
    """Counted as people do; no rule fills a target, and none what is infinite."""
    whole = frame()
    whole.loc[[3, 8], "height"] = None
    file = table(tmp_path, whole)
    refused(r"row 4, column 'height' is missing. 2 are missing in all. Give `missing:`", file)
    whole = frame()
    whole.loc[7, "price"] = None
    refused("row 8, column 'price' is missing.*drop", table(tmp_path, whole), missing="mean")
    whole = frame()
    whole.loc[2, "height"] = np.inf
    refused("row 3, column 'height' is infinite", table(tmp_path, whole))


def test_names_that_are_not_there_are_told(tmp_path: Path) -> None:
    """With the nearest, and with all."""
    file = table(tmp_path)
    all_of_them = "There are: age, height, city, member, price, grade"
    refused(
        f"target: there is no column 'prices'. Did you mean `price`. {all_of_them}", file, "prices"
    )
    refused("columns: there is no column 'heigth'. Did you mean `height`", file, columns=["heigth"])
    refused(f"ignore: there is no column 'x'. {all_of_them}", file, ignore=["x"])
    refused("categorical: there is no column 'town'", file, categorical=["town"])
    other = table(tmp_path, frame().drop(columns="city"), "v.csv")
    refused("val_file: there is no column 'city'", file, val_file=other)


def test_what_cannot_be_trained_on_says_why(tmp_path: Path) -> None:
    """Each in one sentence."""
    file = table(tmp_path)
    refused("there is no file .*nowhere.csv", tmp_path / "nowhere.csv")
    (tmp_path / "t.xlsx").write_text("")
    refused(r"t.xlsx is of a kind that it does not read.*\.parquet", tmp_path / "t.xlsx")
    (tmp_path / "empty.csv").write_text("")
    refused("empty.csv cannot be read: No columns", tmp_path / "empty.csv")
    (tmp_path / "bad.parquet").write_text("no parquet")
    refused("bad.parquet cannot be read", tmp_path / "bad.parquet")
    refused("missing is one of refuse, drop, mean, median", file, missing="zero")
    refused("encoding is one of one_hot, index", file, encoding="hash")
    refused("'grade' holds no numbers", file, "grade", regression=True)
    refused("'price' holds numbers with a fraction", file, regression=False)
    refused("no column is left", file, columns=["price"])
    refused("has no row to train on", table(tmp_path, frame(0), "none.csv"))
    many = frame(2400).assign(name=[f"n{n}" for n in range(2400)])
    refused("'name' has 2,160 different texts", table(tmp_path, many, "many.csv"))
    lists = frame(4).assign(box=[[1, 2]] * 4)
    lists.to_parquet(tmp_path / "lists.parquet")
    refused("'box' holds ndarray, and no numbers or texts", tmp_path / "lists.parquet")
    other = table(tmp_path, frame().assign(grade="medium"), "v.csv")
    refused("class 'medium' of 'grade' is held out", file, "grade", val_file=other)
    refused("there is no table sklearn://diabets. Did you mean `diabetes`", "sklearn://diabets")


def test_scikit_learns_tables_are_there() -> None:
    """As it gives them, classes by their names."""
    plain = {"standardize": False, "val_fraction": 0.0, "target": "target"}
    train = build("datasets", "table", file="sklearn://diabetes", **plain)["train"]
    x, y = load_diabetes(return_X_y=True, scaled=False)
    assert np.allclose(inputs(train), x)
    assert np.allclose(labels(train), y)
    train = build("datasets", "table", file="sklearn://wine", **plain)["train"]
    assert train.class_names == ["class_0", "class_1", "class_2"]
    assert labels(train).tolist() == load_wine().target.tolist()
