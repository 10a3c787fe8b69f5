"""Packed documents: none is cut or lost, and no model sees one from another."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from xrun.data.documents import Documents, Rows, best_fit
from xrun.training.objective import Objective

LENGTHS = [11, 3, 7, 1, 1, 14, 5, 2]


def documents(lengths: list[int] = LENGTHS) -> Documents:
    """Random tokens below 90; the last two thirds of each document carry loss."""
    dice = np.random.default_rng(0)
    tokens = dice.integers(0, 90, sum(lengths), dtype=np.int32)
    trained = np.concatenate([np.arange(n) > n // 3 for n in lengths])
    sizes = np.array(lengths)
    return Documents(tokens, trained, sizes, sizes)


def packed(context: int = 16, padding: int = 95) -> Rows:
    return Rows(documents(), np.arange(len(LENGTHS)), context, True, padding)


def llama(attention: str) -> Any:
    """A small Llama with new weights that are large enough to tell."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval()


def borders(row: dict[str, Tensor]) -> list[slice]:
    """Where the documents of a row are, by its positions."""
    begins = [*torch.nonzero(row["position_ids"] == 0).flatten().tolist(), len(row["input_ids"])]
    return [slice(a, b) for a, b in itertools.pairwise(begins)]


@given(st.lists(st.integers(1, 20), max_size=60))
def test_bins_hold_every_document_once_and_whole(lengths: list[int]) -> None:
    """And no two bins could be one, so at most twice as many as are needed."""
    bins = best_fit(lengths, 20)
    assert sorted(number for each in bins for number in each) == list(range(len(lengths)))
    full = sorted(sum(lengths[number] for number in each) for each in bins)
    assert all(size <= 20 for size in full)
    assert len(bins) < 2 or full[0] + full[1] > 20


def test_the_longest_goes_first_into_the_fullest_bin() -> None:
    """Best fit, decreasing; the order of equal ones is the data's."""
    assert best_fit([4, 9, 6, 2, 1, 4], 10) == [[1, 4], [2, 0], [5, 3]]


def test_rows_hold_every_document_with_its_labels() -> None:
    """Positions begin again with each, the first token has no label, and what fills up is a
    document without labels."""
    rows, given = packed(), documents()
    starts = np.cumsum(given.lengths) - given.lengths
    for row, numbers in zip(map(rows.__getitem__, range(len(rows))), rows.rows, strict=True):
        places = borders(row)
        for number, place in zip(numbers, places, strict=False):
            own = slice(starts[number], starts[number] + given.lengths[number])
            tokens = torch.tensor(given.tokens[own].astype(np.int64))
            assert torch.equal(row["input_ids"][place], tokens)
            assert torch.equal(row["position_ids"][place], torch.arange(len(tokens)))
            expected = tokens.where(torch.tensor(given.trained[own]), torch.tensor(-100))
            assert torch.equal(row["labels"][place], expected)
        for place in places[len(numbers) :]:
            assert set(row["input_ids"][place].tolist()) == {95}
            assert set(row["labels"][place].tolist()) == {-100}
    assert all(
        (row["labels"][row["position_ids"] == 0] == -100).all()
        for row in map(rows.__getitem__, range(len(rows)))
    )
    assert sum(map(len, rows.rows)) == len(LENGTHS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_documents_logits_are_its_own(attention: str) -> None:
    """In a batch of several rows, as the task calls the model: at most 5e-5 from the document
    alone. With the default cache, which the batch switches off, they are far away."""
    model, rows = llama(attention), packed()
    items = list(map(rows.__getitem__, range(len(rows))))
    batch = rows.collate(items)
    assert len(items) > 1
    assert any(len(borders(item)) > 2 for item in items)
    inputs = {name: value for name, value in batch.items() if name != "labels"}

    def furthest(given: dict[str, Any]) -> float:
        logits = model(**given).logits
        return max(
            float((logits[number, place] - alone(model, item["input_ids"][place])).abs().max())
            for number, item in enumerate(items)
            for place in borders(item)
        )

    with torch.no_grad():
        assert furthest(inputs) <= 5e-5
        assert furthest({**inputs, "use_cache": True}) > 0.1


def alone(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens[None]).logits[0]


def test_the_loss_of_packed_documents_is_the_sum_of_their_own() -> None:
    """By the task: no first token of a document is predicted from the document before."""
    model, rows, given = llama("sdpa"), packed(), documents()
    batch = rows.collate(list(map(rows.__getitem__, range(len(rows)))))
    objective = Objective(model, "language_modeling").eval()
    starts = np.cumsum(given.lengths) - given.lengths
    expected = torch.zeros(())
    with torch.no_grad():
        for start, length in zip(starts, given.lengths, strict=True):
            tokens = torch.tensor(given.tokens[start : start + length].astype(np.int64))
            trained = torch.tensor(given.trained[start : start + length])
            if trained.any():
                labels = tokens.where(trained, torch.tensor(-100))[1:]
                logits = alone(model, tokens)[:-1]
                expected = expected + cross_entropy(logits, labels, reduction="sum")
        sums = objective(batch, len(rows))
    assert objective.count(batch, len(rows)) == int(given.trained.sum())
    torch.testing.assert_close(sums["loss"], expected, rtol=1e-5, atol=1e-5)


def test_unpacked_documents_are_filled_up_to_the_longest() -> None:
    """At the end, where no token before looks."""
    rows = Rows(documents(), np.array([2, 6, 0]), 16, False, 95)
    assert [len(rows[number]["input_ids"]) for number in range(3)] == [7, 5, 11]
    batch = rows.collate([rows[0], rows[2]])
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 11)
    assert batch["input_ids"][0, 7:].tolist() == [95] * 4
    assert batch["labels"][0, 7:].tolist() == [-100] * 4
    assert torch.equal(batch["labels"][1], rows[2]["labels"])


def test_the_revision_names_tokens_losses_and_choice() -> None:
    """Another token, another loss or another choice of documents is another revision."""
    given = documents()
    everything = np.arange(len(LENGTHS))
    found = {given.revision(everything), given.revision(everything[:-1])}
    tokens = given.tokens.copy()
    tokens[3] += 1
    found.add(Documents(tokens, given.trained, given.lengths, given.whole).revision(everything))
    found.add(
        Documents(given.tokens, ~given.trained, given.lengths, given.whole).revision(everything)
    )
    assert len(found) == 4
    assert documents().revision(everything) == given.revision(everything)
