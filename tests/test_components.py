"""What the shipped components promise, on real data that is written here or comes with a
library."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from xrun.component import check_args, load_build, signature
from xrun.errors import ComponentError

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NEEDS_THE_HUB = {"hub", "hub_images", "hub_text"}
WORDS = "spot machines come and go, the run stays"


def build(kind: Any, component: str, /, **args: Any) -> Any:
    return load_build(kind, component, ROOT)(**args)


def seeded(seed: int, function: Callable[[], Any]) -> Any:
    torch.manual_seed(seed)
    return function()


def same(a: Any, b: Any) -> bool:
    """Whether two items are equal to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def real_bytes(items: list[dict[str, Tensor]]) -> bytes:
    """The bytes that have a label, in order."""
    return b"".join(bytes(item["input_ids"][item["labels"] != -100].tolist()) for item in items)


def finish(iterator: Any) -> list[Any]:
    return list(iterator)


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


def picture(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """40 x 50 pixels of noise that depend on the number."""
    return np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def documents(shard: int) -> list[str]:
    """From empty to much longer than a block, some beyond ASCII."""
    return [f"{shard}.{i} " + (WORDS + " é ") * (i * 5 % 7) if i != 3 else "" for i in range(20)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of parquet files: 2 shards of 20 training documents."""
    for shard in range(2):
        path = tmp_path / "texts" / f"train-{shard:05d}-of-00002.parquet"
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict({"text": documents(shard)}).to_parquet(path)
    return tmp_path / "texts"


# Recipes


def parts(recipe: Path) -> list[tuple[Any, str, dict[str, Any]]]:
    content = yaml.safe_load(recipe.read_text())
    return [
        (kind + "s", content[kind]["name"], content[kind].get("args", {}))
        for kind in ("model", "dataset")
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_arguments_in_every_recipe_fit_its_components(recipe: Path) -> None:
    """What a shipped recipe gives to `build` is what `build` takes."""
    for kind, name, args in parts(recipe):
        assert check_args(signature(ROOT / kind / f"{name}.py"), args) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_model_takes_its_datasets_batch(recipe: Path) -> None:
    """Components build from their recipe's arguments and fit together, unless they need the Hub."""
    (_, model, model_args), (_, dataset, dataset_args) = parts(recipe)
    if {model, dataset} & NEEDS_THE_HUB:
        pytest.skip("needs the Hub")
    train = build("datasets", dataset, **dataset_args)["train"]
    batch = torch.utils.data.default_collate(train.__getitems__([0, len(train) - 1]))
    inputs, labels = (batch["input_ids"], batch["labels"]) if isinstance(batch, dict) else batch
    logits = build("models", model, **model_args)(inputs)
    assert logits.shape[: labels.ndim] == labels.shape
    assert torch.isfinite(logits).all()
    assert logits.shape[-1] > labels.max()


# Models


@pytest.mark.parametrize(
    ("name", "args"),
    [
        (
            "vit",
            {
                "image_size": 8,
                "patch_size": 2,
                "channels": 1,
                "classes": 10,
                "width": 16,
                "heads": 2,
                "dropout": 0.1,
            },
        ),
        ("mlp", {"inputs": 64, "classes": 10, "hidden": [32, 16], "dropout": 0.1}),
    ],
)
def test_classifiers_follow_from_the_seed(name: str, args: dict[str, Any]) -> None:
    """The same seed gives the same weights and the same dropout; another one does not."""
    inputs = torch.rand(3, 1, 8, 8)

    def outputs() -> list[Tensor]:
        model = build("models", name, **args)
        return [*model.parameters(), model(inputs)]

    assert same(seeded(1, outputs), seeded(1, outputs))
    assert not same(seeded(1, outputs), seeded(2, outputs))


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_vit_names_parameters_that_exist(pool: str) -> None:
    """`no_weight_decay` names parameters of this very model."""
    model = build(
        "models", "vit", image_size=8, patch_size=4, channels=3, classes=5, width=16, pool=pool
    )
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def test_the_mlps_hidden_layers_are_a_list_or_a_width_and_a_depth() -> None:
    """`hidden: 8, depth: 2` is `hidden: [8, 8]`, and both at once is refused."""
    repeated = build("models", "mlp", inputs=4, classes=2, hidden=8, depth=2)
    assert str(repeated) == str(build("models", "mlp", inputs=4, classes=2, hidden=[8, 8]))
    with pytest.raises(ComponentError, match="depth"):
        build("models", "mlp", inputs=4, classes=2, hidden=[8, 8], depth=2)


def test_the_mlps_batch_norm_has_buffers() -> None:
    """With `batch_norm` there is running state beside the parameters, and without there is none."""
    args = {"inputs": 4, "classes": 2, "hidden": 8}
    assert len(list(build("models", "mlp", **args, batch_norm=True).buffers())) == 3
    assert not list(build("models", "mlp", **args).buffers())


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_gpt_does_not_look_ahead(positions: str) -> None:
    """Changing a token changes no logits before it, and does change its own."""
    model = build(
        "models", "gpt", vocab=50, context=16, width=32, depth=2, heads=2, positions=positions
    ).eval()
    tokens = torch.randint(50, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_gpt_knows_positions(positions: str) -> None:
    """Exchanging two earlier tokens changes what is predicted, so order is seen and not only the
    set."""
    model = build(
        "models", "gpt", vocab=50, context=8, width=32, depth=1, heads=2, positions=positions
    ).eval()
    a, b = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 1, 3]])
    assert (model(a)[:, -1] - model(b)[:, -1]).abs().max() > 1e-6


def test_a_gpts_tied_weights_are_one_tensor() -> None:
    """The output layer is the embedding itself, also after an optimizer step."""
    model = build("models", "gpt", vocab=50, context=8, width=32, depth=1, heads=2)
    tokens = torch.randint(50, (2, 8))
    model(tokens, labels=tokens).logsumexp(-1).sum().backward()
    torch.optim.AdamW(model.parameters()).step()
    assert model.lm_head.weight is model.tok.weight
    assert build("models", "gpt", tied=False).lm_head.weight.shape == (256, 128)


def test_a_new_gpt_predicts_nothing_yet() -> None:
    """The first loss is about log(vocab): the initial logits are small."""
    model = seeded(0, lambda: build("models", "gpt", vocab=256, context=64))
    tokens = torch.randint(256, (4, 64))
    loss = torch.nn.functional.cross_entropy(
        model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    assert abs(loss.item() - math.log(256)) < 0.3


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a tiny BERT, as `save_pretrained` writes it, in bfloat16."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    seeded(3, lambda: transformers.BertModel(config)).to(torch.bfloat16).save_pretrained(
        tmp_path / "tiny"
    )
    return tmp_path / "tiny"


def test_hub_loads_a_local_folder(tiny: Path) -> None:
    """The weights are those of the folder, held in float32, in training mode."""
    import safetensors.torch

    model = build("models", "hub", name=str(tiny))
    saved = safetensors.torch.load_file(tiny / "model.safetensors")
    loaded = model.state_dict()
    assert model.training
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert all(torch.equal(loaded[name].to(torch.bfloat16), value) for name, value in saved.items())


def test_hub_starts_anew_without_pretrained(tiny: Path) -> None:
    """`pretrained: false` takes the configuration only: weights follow from the seed and differ
    from the folder's."""
    fresh = [
        seeded(1, lambda: build("models", "hub", name=str(tiny), pretrained=False))
        for _ in range(2)
    ]
    loaded = build("models", "hub", name=str(tiny))
    assert same(list(fresh[0].parameters()), list(fresh[1].parameters()))
    assert not same(list(fresh[0].parameters()), list(loaded.parameters()))
    assert all(value.dtype == torch.float32 for value in fresh[0].parameters())


def test_hub_makes_a_head_for_the_recipes_labels(tiny: Path) -> None:
    """`config` overrides the number of labels, and the new head follows from the seed."""
    args = {
        "name": str(tiny),
        "auto_class": "AutoModelForSequenceClassification",
        "config": {"num_labels": 7},
    }
    heads = [seeded(1, lambda: build("models", "hub", **args)).classifier.weight for _ in range(2)]
    assert heads[0].shape == (7, 8)
    assert torch.equal(*heads)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"auto_class": "AutoModelForCausalLLM"}, "Did you mean AutoModelForCausalLM?"),
        ({"auto_class": "Trainer"}, "no Trainer"),
        ({"config": {"hidden_dropout_probe": 0.5}}, "Did you mean hidden_dropout_prob?"),
    ],
)
def test_hub_refuses_what_transformers_does_not_know(
    tiny: Path, args: dict[str, Any], message: str
) -> None:
    """An unknown class or key of the configuration is an error that names the nearest one."""
    with pytest.raises(ComponentError, match=message.replace("?", r"\?")):
        build("models", "hub", name=str(tiny), **args)


def test_hub_unpickles_nothing(tiny: Path) -> None:
    """A folder that has only a pickled state dict is refused."""
    torch.save({}, tiny / "pytorch_model.bin")
    (tiny / "model.safetensors").unlink()
    with pytest.raises(ComponentError, match="cannot be loaded"):
        build("models", "hub", name=str(tiny))


# Digits


def test_digits_are_split_without_loss_or_overlap() -> None:
    """Every image is in exactly one split, and every class in the same proportion in both."""
    from sklearn.datasets import load_digits

    splits = build("datasets", "digits")
    found = [
        (*(image.flatten() * 8 + 8).tolist(), label)
        for split in splits.values()
        for image, label in split
    ]
    images, labels = load_digits(return_X_y=True)
    assert sorted(found) == sorted(
        (*map(float, image), label) for image, label in zip(images, labels, strict=True)
    )
    shares = [np.bincount(split.labels, minlength=10) / len(split) for split in splits.values()]
    assert np.abs(shares[0] - shares[1]).max() < 0.005


def test_digits_split_follows_from_its_seed() -> None:
    """The same seed gives the same split, another seed another one."""
    first, again, other = (
        build("datasets", "digits", split_seed=seed)["val"].labels for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_digits_augmentation_follows_from_torchs_generator() -> None:
    """The same seed gives the same images to the last bit, another seed others, and `val` is never
    changed."""
    splits = build("datasets", "digits", augment=True)
    one, again, other = (
        seeded(seed, lambda: splits["train"].__getitems__([5, 6, 7])) for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert not same(one, other)
    assert same(splits["val"][3], splits["val"][3])


def test_digits_move_by_one_pixel_at_most() -> None:
    """A shifted image is the image itself, moved, with background behind it."""
    shift = load_build("datasets", "digits", ROOT).__globals__["shift"]
    image = torch.rand(1, 1, 8, 8).expand(200, -1, -1, -1)
    padded = torch.nn.functional.pad(image[0, 0], (1, 1, 1, 1), value=-1.0)
    places = {padded[y : y + 8, x : x + 8].numpy().tobytes() for y in range(3) for x in range(3)}
    assert {moved.numpy().tobytes() for moved in seeded(0, lambda: shift(image))[:, 0]} == places


# Text files


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


# Synthetic


@pytest.mark.parametrize(
    "args",
    [{"kind": "classification", "shape": [2, 3]}, {"kind": "tokens", "shape": 12, "classes": 50}],
)
def test_a_synthetic_sample_is_a_function_of_its_index(args: dict[str, Any]) -> None:
    """Any of a billion samples comes at once, the same each time, and differs from its
    neighbour."""
    train = build("datasets", "synthetic", samples=10**9, **args)["train"]
    last = train[10**9 - 1]
    assert len(train) == 10**9
    assert same(last, build("datasets", "synthetic", samples=10**9, **args)["train"][10**9 - 1])
    assert not same(last, train[10**9 - 2])
    with pytest.raises(IndexError):
        train[10**9]


def test_synthetic_validation_goes_on_where_training_ends() -> None:
    """`val` are the indices after `train`, so no sample is in both."""
    few, more = (build("datasets", "synthetic", samples=n, val_samples=10) for n in (100, 110))
    assert all(same(few["val"][i], more["train"][100 + i]) for i in range(10))


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_synthetic_noise_follows_from_torchs_generator(kind: str) -> None:
    """The same seed gives the same noise, another seed another, and labels and `val` have none."""
    splits = build("datasets", "synthetic", kind=kind, noise=0.5)
    one, again, other = (seeded(seed, lambda: splits["train"][3]) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)
    label: Any = 1 if kind == "classification" else "labels"
    assert same(one[label], other[label])
    assert same(splits["val"][0], splits["val"][0])


def test_synthetic_classes_can_be_learned() -> None:
    """The nearest class mean tells nearly all held-out labels: there is something to learn."""
    splits = build("datasets", "synthetic", samples=2000, shape=32, classes=4)
    x, y = torch.utils.data.default_collate([splits["train"][i] for i in range(2000)])
    means = torch.stack([x[y == label].mean(0) for label in range(4)])
    right = [
        int((means - image).norm(dim=1).argmin()) == label
        for image, label in map(splits["val"].__getitem__, range(200))
    ]
    assert np.mean(right) > 0.95


# Images from Hugging Face datasets


def test_hub_images_give_tensors_and_labels(pictures: Path) -> None:
    """Map-style splits of a folder: all pictures, of the wanted size, with their labels,
    normalised."""
    splits = build("datasets", "hub_images", name=str(pictures), image_size=16, augment=False)
    assert [label for _, label in splits["train"].__getitems__(list(range(24)))] == list(range(24))
    assert len(splits["val"]) == 8
    image, _ = splits["train"][5]
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.float32)
    assert -1 <= image.min() < image.max() <= 1


def test_hub_images_are_the_middle_of_the_picture(pictures: Path) -> None:
    """Without augmentation the tensor is the resized middle square, computed here in another
    way."""
    image, label = build(
        "datasets", "hub_images", name=str(pictures), image_size=35, channels=1, augment=False
    )["train"][7]
    grey = Image.fromarray(picture(label)).convert("L")
    side = 40 / 1.143
    box = (25 - side / 2, 20 - side / 2, 25 + side / 2, 20 + side / 2)
    expected = (
        np.asarray(grey.resize((35, 35), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
        / 127.5
        - 1
    )
    assert np.allclose(image[0].numpy(), expected, atol=1e-6)


def test_hub_images_augmentation_follows_from_torchs_generator(pictures: Path) -> None:
    """The same seed gives the same crop, another seed another, and `val` is never changed."""
    splits = build("datasets", "hub_images", name=str(pictures), image_size=16)
    one, again, other = (seeded(seed, lambda: splits["train"][0]) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)
    assert same(splits["val"][0], splits["val"][0])


def test_streamed_images_are_the_same_as_held_ones(pictures: Path) -> None:
    """All shards together give every item of the map-style split, and iterating decodes nothing."""
    args = {"name": str(pictures), "image_size": 16, "augment": False}
    held, stream = (
        build("datasets", "hub_images", **args, streaming=streaming)["train"]
        for streaming in (False, True)
    )
    raw = [example for i in range(stream.num_shards) for example in stream.shard(i)]
    assert stream.num_shards == 3
    assert set(raw[0]["image"]) == {"bytes", "path"}
    assert same([stream.transform(example) for example in raw], held.__getitems__(list(range(24))))
    assert stream.revision == held.revision


@pytest.mark.parametrize("taken", [1, 5, 8])
def test_an_image_shard_resumes_in_the_middle(pictures: Path, taken: int) -> None:
    """After `load_state_dict` exactly the rest of the shard comes, in the same order."""
    stream = build("datasets", "hub_images", name=str(pictures), image_size=16, streaming=True)[
        "train"
    ]
    whole = finish(stream.shard(1))
    shard = stream.shard(1)
    iterator = iter(shard)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(shard.state_dict()))
    finish(iterator)
    resumed = stream.shard(1)
    resumed.load_state_dict(state)
    assert finish(resumed) == whole[taken:]


def test_streamed_images_are_validated_on_every_shard(pictures: Path) -> None:
    """`val` of a stream is map-style and takes its samples evenly from all files."""
    splits = build(
        "datasets", "hub_images", name=str(pictures), image_size=16, streaming=True, val_samples=4
    )
    assert [label for _, label in splits["val"]] == [0, 1, 8, 9]


def test_hub_images_read_a_folder_of_image_files(tmp_path: Path) -> None:
    """A folder of classes with picture files works as it is; labels are the folders in alphabetical
    order."""
    for number, name in enumerate(["cat", "dog"]):
        path = tmp_path / "animals" / "train" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(picture(number)).save(path)
    for streaming in (False, True):
        args = {
            "name": str(tmp_path / "animals"),
            "val_split": None,
            "image_size": 8,
            "augment": False,
            "streaming": streaming,
        }
        train = build("datasets", "hub_images", **args)["train"]
        items = (
            [train.transform(e) for i in range(train.num_shards) for e in train.shard(i)]
            if streaming
            else list(train)
        )
        assert sorted(label for _, label in items) == [0, 1]


def test_hub_images_name_the_columns_there_are(pictures: Path) -> None:
    """A column that does not exist is an error that lists those that do."""
    with pytest.raises(ComponentError, match=r"no column class.*image, label, note"):
        build("datasets", "hub_images", name=str(pictures), label_column="class")


# Text from Hugging Face datasets


def test_packed_documents_lose_no_byte(texts: Path) -> None:
    """Blocks of a map-style split hold every byte of every document, with a 0 after each."""
    train = build("datasets", "hub_text", name=str(texts), val_split=None, context=32)["train"]
    items = train.__getitems__(list(range(len(train))))
    joined = b"".join(text.encode() + b"\0" for shard in range(2) for text in documents(shard))
    assert real_bytes(items) == joined
    assert len(train) == math.ceil(len(joined) / 32)
    assert same(train[3], items[3])


def test_unpacked_documents_are_cut_or_filled_up(texts: Path) -> None:
    """Without packing item i is the start of document i, and what fills it up has no label; held
    and streamed alike."""
    args = {"name": str(texts), "val_split": None, "context": 32, "packing": False}
    held = list(build("datasets", "hub_text", **args)["train"])
    stream = build("datasets", "hub_text", **args, streaming=True, val_documents=0)["train"]
    assert same(held, [stream.transform(example) for i in range(2) for example in stream.shard(i)])
    assert [real_bytes([item]) for item in held] == [
        (t.encode() + b"\0")[:32] for shard in range(2) for t in documents(shard)
    ]


def test_a_streamed_shard_is_packed_without_loss(texts: Path) -> None:
    """Blocks of a shard hold every byte of its documents once, in order."""
    stream = build(
        "datasets",
        "hub_text",
        name=str(texts),
        val_split=None,
        context=32,
        streaming=True,
        val_documents=0,
    )["train"]
    for shard in range(stream.num_shards):
        items = [stream.transform(example) for example in stream.shard(shard)]
        assert real_bytes(items) == b"".join(text.encode() + b"\0" for text in documents(shard))


@pytest.mark.parametrize("held_out", [0, 3])
def test_a_packed_shard_resumes_after_any_block(texts: Path, held_out: int) -> None:
    """From the state after each block, through JSON, exactly the rest comes: within documents,
    between them and at the end."""
    args = {
        "name": str(texts),
        "val_split": None,
        "context": 32,
        "streaming": True,
        "val_documents": held_out,
    }
    stream = build("datasets", "hub_text", **args)["train"]
    whole, states, shard = [], [], stream.shard(0)
    states.append(json.dumps(shard.state_dict()))
    for example in shard:
        whole.append(example)
        states.append(json.dumps(shard.state_dict()))
    assert len(whole) > 20
    for taken, state in enumerate(states):
        resumed = stream.shard(0)
        resumed.load_state_dict(json.loads(state))
        assert finish(resumed) == whole[taken:]


def test_a_packed_shard_resumes_twice(texts: Path) -> None:
    """A state that was taken after resuming is as good as the first."""
    stream = build(
        "datasets",
        "hub_text",
        name=str(texts),
        val_split=None,
        context=16,
        streaming=True,
        val_documents=0,
    )["train"]
    whole, seen = finish(stream.shard(1)), list[Any]()
    state = json.dumps(stream.shard(1).state_dict())
    for _ in range(math.ceil(len(whole) / 7)):
        shard = stream.shard(1)
        shard.load_state_dict(json.loads(state))
        iterator = iter(shard)
        seen += itertools.islice(iterator, 7)
        state = json.dumps(shard.state_dict())
        finish(iterator)
    assert seen == whole


def test_the_state_of_a_packed_shard_stays_small(tmp_path: Path) -> None:
    """A document of a hundred thousand bytes leaves no more than a block in the state."""
    (tmp_path / "long").mkdir()
    datasets.Dataset.from_dict({"text": ["x" * 100_000, "y"]}).to_parquet(
        tmp_path / "long" / "train-00000-of-00001.parquet"
    )
    args = {
        "name": str(tmp_path / "long"),
        "val_split": None,
        "context": 64,
        "streaming": True,
        "val_documents": 0,
    }
    shard = build("datasets", "hub_text", **args)["train"].shard(0)
    assert max(len(json.dumps(shard.state_dict())) for _ in shard) < 2000


def test_held_out_documents_are_not_trained_on(texts: Path) -> None:
    """Without a validation split the first documents go to `val` and all others to `train`."""
    splits = build(
        "datasets",
        "hub_text",
        name=str(texts),
        val_split=None,
        context=32,
        streaming=True,
        val_documents=3,
    )
    trained = [splits["train"].transform(example) for example in splits["train"].shard(0)]
    assert real_bytes(list(splits["val"])) == b"".join(
        text.encode() + b"\0" for text in documents(0)[:3]
    )
    assert real_bytes(trained) == b"".join(text.encode() + b"\0" for text in documents(0)[3:])


def test_text_goes_through_a_tokenizer(texts: Path, tmp_path: Path) -> None:
    """With a tokenizer, here of a local folder, blocks hold its tokens, and its end-of-sequence
    token ends each document."""
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<eos>": 0, "<unk>": 1, "spot": 2, "run": 3}, "<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"eos_token": "<eos>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    fast.save_pretrained(tmp_path / "words")
    args = {
        "name": str(texts),
        "val_split": None,
        "tokenizer": str(tmp_path / "words"),
        "context": 8,
    }
    tokens = torch.cat([item["labels"] for item in build("datasets", "hub_text", **args)["train"]])
    counted = [int((tokens == number).sum()) for number in (0, 2, 3)]
    text = " ".join(text for shard in range(2) for text in documents(shard))
    assert counted == [40, text.count("spot"), text.count("run")]


def test_a_stream_of_json_lines_is_read(tmp_path: Path) -> None:
    """Where the columns are known only after reading, a stream works as well."""
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in documents(0))
    )
    args = {
        "name": str(tmp_path),
        "val_split": None,
        "context": 32,
        "streaming": True,
        "val_documents": 2,
    }
    splits = build("datasets", "hub_text", **args)
    items = [*splits["val"], *map(splits["train"].transform, splits["train"].shard(0))]
    assert real_bytes(items) == b"".join(text.encode() + b"\0" for text in documents(0))


def test_hub_text_names_the_columns_there_are(texts: Path) -> None:
    """A column that does not exist is an error that lists those that do."""
    with pytest.raises(ComponentError, match=r"no column body.*text"):
        build("datasets", "hub_text", name=str(texts), val_split=None, text_column="body")
