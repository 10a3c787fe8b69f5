"""Data of people's own, written here: pictures and documents."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from PIL import Image

from support.components import documents, picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` reads its cache's place once, at import, which was before HOME was replaced."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of parquet files: 3 shards of 8 training pictures, 2 shards of 4 to validate; the
    label is 8 x shard + place."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Value("int64"),
            "note": datasets.Value("string"),
        }
    )
    for split, shards, each in (("train", 3, 8), ("validation", 2, 4)):
        for shard in range(shards):
            rows = {
                "image": [Image.fromarray(picture(8 * shard + i)) for i in range(each)],
                "label": [8 * shard + i for i in range(each)],
                "note": ["unused"] * each,
            }
            path = tmp_path / "pictures" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            path.parent.mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return tmp_path / "pictures"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of parquet files: 2 shards of 20 training documents."""
    for shard in range(2):
        path = tmp_path / "texts" / f"train-{shard:05d}-of-00002.parquet"
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict({"text": documents(shard)}).to_parquet(path)
    return tmp_path / "texts"
