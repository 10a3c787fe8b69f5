"""What the shipped models promise (models/)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.components import (
    build,
    same,
    seeded,
)
from xrun.errors import ComponentError


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


def test_hub_takes_a_dtype_and_an_attention(tiny: Path) -> None:
    """Weights as the folder has them, and transformers' attention of this name."""
    import safetensors.torch

    more = {"dtype": "bfloat16", "attn_implementation": "eager"}
    model = build("models", "hub", name=str(tiny), **more)
    saved = safetensors.torch.load_file(tiny / "model.safetensors")
    assert all(same(model.state_dict()[name], value) for name, value in saved.items())
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert build("models", "hub", name=str(tiny)).config._attn_implementation == "sdpa"
    fresh = build("models", "hub", name=str(tiny), pretrained=False, **more)
    assert {value.dtype for value in fresh.parameters()} == {torch.bfloat16}
    assert fresh.config._attn_implementation == "eager"


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
