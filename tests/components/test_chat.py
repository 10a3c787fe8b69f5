"""What datasets/chat.py promises, on conversations that are written here."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.components import build, same
from xrun.errors import ComponentError

Row = dict[str, Any]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


TALK = {"messages": [user("Hé?"), assistant("Né."), user("So?"), assistant("Yes")]}
ONCE = {"messages": [user("1"), assistant("2")]}


@pytest.fixture
def chat(tmp_path: Path) -> Callable[..., Any]:
    """`chat(row, ..., **args)`: the splits of a file with these rows."""

    def made(*rows: Row, **args: Any) -> Any:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return build(
            "datasets", "chat", name=str(path), **{"context": 64, "packing": False, **args}
        )

    return made


def texts(split: Any, number: int = 0) -> tuple[str, str]:
    """A sample's text, and what of it carries loss."""
    item = split[number]
    decode = split.tokenizer.decode
    return decode(item["input_ids"]), decode(item["input_ids"][item["labels"] != -100])


def test_loss_is_on_what_the_assistant_says(chat: Callable[..., Any]) -> None:
    """Beside tokens and a mask made by hand: the bytes' tokenizer, whose template has marks."""
    split = chat(TALK)["train"]
    item, tokenizer = split[0], split.tokenizer
    by_hand = [
        ("<|im_start|>user\nHé?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Né.<|im_end|>", True),
        ("\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes<|im_end|>", True),
        ("\n", False),
    ]
    pieces = [(tokenizer.encode(text), loss) for text, loss in by_hand]
    assert item["input_ids"].tolist() == [token for tokens, _ in pieces for token in tokens]
    expected = [token if loss else -100 for tokens, loss in pieces for token in tokens]
    assert item["labels"].tolist() == expected
    assert len(tokenizer.encode("Né.<|im_end|>")) == 5


def test_without_marks_loss_is_on_what_a_turn_adds(chat: Callable[..., Any]) -> None:
    """By prefixes, after the generation prompt; the same as by marks."""
    split = chat(TALK, chat_template=CHATML)["train"]
    whole, losses = texts(split)
    assert losses == "Né.<|im_end|>Yes<|im_end|>"
    assert whole.count("<|im_start|>") == 4
    marked = CHATML.replace(
        "{{ m.content }}<|im_end|>",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}",
    )
    assert same(chat(TALK, chat_template=marked)["train"][0], split[0])


def test_a_template_that_rewrites_turns_is_refused(chat: Callable[..., Any]) -> None:
    """One without the prefix property, where that shows; marks are the way out."""
    assert texts(chat(ONCE, chat_template=FORGETFUL)["train"])[1] == "2<|im_end|>"
    with pytest.raises(
        ComponentError, match=r"conversation 2: .* before turn 1 .*prefix property"
    ) as error:
        chat(ONCE, ONCE, TALK, chat_template=FORGETFUL)
    assert "{% generation %} marks" in error.value.hint


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_prompt_carries_no_loss(chat: Callable[..., Any], template: str | None) -> None:
    """Neither as texts, which are a user's and an assistant's turn, nor the assistant's turns in
    it."""
    as_texts = chat({"prompt": "1", "completion": "2"}, chat_template=template)["train"]
    assert same(as_texts[0], chat(ONCE, chat_template=template)["train"][0])
    turns = TALK["messages"]
    later = chat({"prompt": turns[:3], "completion": turns[3:]}, chat_template=template)["train"]
    assert texts(later) == (texts(chat(TALK, chat_template=template)["train"])[0], "Yes<|im_end|>")


def test_a_template_may_be_a_file_and_gets_arguments_and_tools(
    chat: Callable[..., Any], tmp_path: Path
) -> None:
    """And a date that is the same in every attempt, and only the keys that the row has."""
    path = tmp_path / "own.jinja"
    path.write_text(
        "{{ strftime_now('%d %b %Y') }} {{ mood }} {{ tools | length if tools else 0 }} "
        "{% for m in messages %}{{ m.role }}{{ ' named' if m.name is defined }}:"
        "{% generation %}{{ m.content if m.role == 'assistant' }}{% endgeneration %};{% endfor %}"
    )
    named = {"messages": [{**user("a"), "name": "Ann"}, assistant("b")], "tools": [{"type": "x"}]}
    split = chat(
        {**ONCE, "tools": None}, named, chat_template=str(path), template_args={"mood": "fine"}
    )["train"]
    assert texts(split) == ("26 Jul 2024 fine 0 user:;assistant:2;", "2")
    assert texts(split, 1)[0] == "26 Jul 2024 fine 1 user named:;assistant:b;"
    assert split.tokenizer.chat_template == path.read_text()


def test_a_date_that_cannot_be_fixed_is_refused(chat: Callable[..., Any], tmp_path: Path) -> None:
    """A format that the template makes itself would give other data in each attempt."""
    path = tmp_path / "own.jinja"
    path.write_text("{% set f = '%d' %}{{ strftime_now(f) }}{% generation %}{% endgeneration %}")
    with pytest.raises(ComponentError, match="today's date"):
        chat(ONCE, chat_template=str(path))


def test_a_long_conversation_keeps_its_first_tokens(
    chat: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """`context` of them; how many are cut and how many tokens carry loss is said."""
    long = {"messages": [user("1"), assistant("x" * 100)]}
    whole = chat(long, context=200)["train"][0]
    with caplog.at_level(logging.INFO, "xrun"):
        cut = chat(long, ONCE, context=50)["train"][0]
    assert same(cut, {name: values[:50] for name, values in whole.items()})
    rest = len(cut["labels"]) - int((cut["labels"] == -100).sum())
    assert (
        f"train: {rest + 2} of {50 + len(chat(ONCE)['train'][0]['input_ids'])} tokens carry loss"
        in caplog.text
    )
    assert "2 conversations of at most 50 tokens, 1 cut." in caplog.text


def test_conversations_without_loss_are_named(
    chat: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """By their indices: no turn of the assistant's, or none within the context. They are left out
    if that is said."""
    late = {"messages": [user("x" * 99), assistant("y")]}
    rows = [ONCE, {"messages": [user("only")]}, TALK, late]
    with pytest.raises(
        ComponentError, match=r"2 of 4 conversations of the split train .* first 64: 1, 3\."
    ) as error:
        chat(*rows)
    assert "skip_empty: true" in error.value.hint
    with caplog.at_level(logging.INFO, "xrun"):
        left = chat(*rows, skip_empty=True)["train"]
    assert [len(left), texts(left)[1]] == [2, "2<|im_end|>"]
    assert "left out, as no token carries loss: 2 conversations (1, 3)" in caplog.text
    with pytest.raises(ComponentError, match="4 of 4"):
        chat(late, late, late, late)


def test_packed_conversations_are_the_same_ones(chat: Callable[..., Any]) -> None:
    """Each once, with its tokens and its losses, in fewer rows, the same ones in each build."""
    rows = [{"messages": [user("u" * n), assistant("a" * (30 - n))]} for n in range(1, 30)]
    alone, packed = (
        chat(*rows, context=200)["train"],
        chat(*rows, context=200, packing=True)["train"],
    )
    assert len(packed) < len(alone) / 1.5
    found: list[Row] = []
    for number in range(len(packed)):
        row = packed[number]
        begins = torch.nonzero(row["position_ids"] == 0).flatten().tolist()
        for a, b in zip(begins, [*begins[1:], 200], strict=True):
            found.append({name: row[name][a:b] for name in ("input_ids", "labels")})
    documents = [each for each in found if (each["labels"] != -100).any()]
    key = lambda item: item["input_ids"].tolist()  # noqa: E731
    expected = sorted((alone[number] for number in range(len(alone))), key=key)
    assert same(sorted(documents, key=key), expected)
    again = chat(*rows, context=200, packing=True)["train"]
    assert [again.revision, same(again[0], packed[0])] == [packed.revision, True]
    assert packed.collate([packed[0], packed[1]])["use_cache"] is False


def test_some_are_held_out(chat: Callable[..., Any], tmp_path: Path) -> None:
    """Every n-th one, or a split of a folder, here of parquet and jsonl."""
    rows = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(10)]
    splits = chat(*rows, val_fraction=0.2)
    assert [texts(splits["val"], n)[1][:2] for n in range(2)] == ["c4", "c9"]
    assert [len(splits["train"]), len(splits["val"])] == [8, 2]
    assert splits["train"].revision != splits["val"].revision
    folder = tmp_path / "folder"
    folder.mkdir()
    import datasets

    datasets.Dataset.from_list([ONCE]).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_list([TALK]).to_parquet(folder / "validation.parquet")
    found = build("datasets", "chat", name=str(folder), val_split="validation", packing=False)
    assert same(found["train"][0], chat(ONCE)["train"][0])
    assert same(found["val"][0], chat(TALK)["train"][0])


def test_what_is_missing_is_said(chat: Callable[..., Any], tmp_path: Path) -> None:
    """The file, the columns, and what of a conversation the template does not take."""
    with pytest.raises(ComponentError, match=r"there is no file data/absent\.jsonl"):
        build("datasets", "chat", name="data/absent.jsonl")
    with pytest.raises(ComponentError, match=r"`prompt` and `completion` \(it has prompt, text\)"):
        chat({"prompt": "a", "text": "b"})
    with pytest.raises(ComponentError, match=r"conversation 1: the chat template does not take it"):
        chat(ONCE, {"messages": [user("a"), {"role": "assistant"}]})
    with pytest.raises(ComponentError, match=r"conversation 0: .* no system turn, please"):
        chat(ONCE, chat_template="{{ raise_exception('no system turn, please') }}")


def test_the_tokenizer_can_be_a_folder(chat: Callable[..., Any], tmp_path: Path) -> None:
    """As `save_pretrained` writes it, with its template; what it lacks is said."""
    tokenizer = chat(ONCE)["train"].tokenizer
    tokenizer.save_pretrained(tmp_path / "own")
    assert same(chat(TALK, tokenizer=str(tmp_path / "own"))["train"][0], chat(TALK)["train"][0])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ComponentError, match="has no chat template"):
        chat(ONCE, tokenizer=str(tmp_path / "bare"))
    loaded = chat(ONCE, tokenizer=str(tmp_path / "bare"), chat_template=CHATML)["train"]
    assert texts(loaded)[1] == "2<|im_end|>"
