"""Fine-tuning on conversations: a chat template makes texts of them, and loss is on what the assistant says.

A row of the data has `messages`, or `prompt` and `completion`: messages too, or texts, which are a user's and an assistant's
turn. `tools` of a row go to the template. Which tokens carry loss: where the template marks them (`{% generation %}`), the
marked ones; else, of each of the assistant's turns, what the text has more than the text before it with the generation prompt.
That is only right where each text begins with the one before (the prefix property); a template for which it does not is refused.

A conversation of more than `context` tokens keeps its first `context`. Packing puts several into one row, best fit, longest
first: a function of their lengths and the context alone. Positions begin again with each, the first token of each has no label,
and `use_cache` is False in the batch: with their default cache transformers' models look over the borders (docs/decisions/0043).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import jinja2
import numpy as np
from numpy.typing import NDArray

from xrun.data.documents import Documents, Rows
from xrun.errors import ComponentError

log = logging.getLogger("xrun")

LAYOUT = 1
"""Goes up when this file makes other tokens of the same rows: `datasets` keeps what it has encoded."""
KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
NOW = re.compile(r"strftime_now\(\s*([\"'])(.*?)\1\s*\)")
CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
FEATURES = datasets.Features(
    {"tokens": datasets.List(datasets.Value("int32")), "trained": datasets.List(datasets.Value("bool")), "whole": datasets.Value("int64")}
)
Turn = dict[str, Any]
Flags = NDArray[np.bool_]


def bytes_tokenizer() -> Any:
    """UTF-8 bytes as tokens, and three more: 259 in all. Its template is ChatML, with marks."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({letter: number for number, letter in enumerate(alphabet)}, [])
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "extra_special_tokens": ["<|im_start|>"]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHATML, **special)


def load_tokenizer(name: str | None, revision: str | None, template: str | None) -> Any:
    """transformers' tokenizer with the template, which is a file's or a text; ComponentError if it cannot do what is needed."""
    if name is None:
        tokenizer = bytes_tokenizer()
    else:
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision)
    if template is not None:
        is_text = "{" in template or "\n" in template
        tokenizer.chat_template = template if is_text else Path(template).expanduser().read_text()
    if not tokenizer.chat_template:
        raise ComponentError(f"datasets/chat: the tokenizer {name} has no chat template.", "Give one: `chat_template: FILE`.")
    if not tokenizer.is_fast:
        what = "does not say which characters its tokens stand for, so nobody knows which ones are the assistant's"
        raise ComponentError(f"datasets/chat: the tokenizer {name} {what}.", "Take one that has a tokenizer.json.")
    return tokenizer


def without_none(value: Any) -> Any:
    """Without the keys that only other rows have: a table gives each row all of them, and templates ask what is defined."""
    if isinstance(value, Mapping):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value


def conversation(row: Mapping[str, Any]) -> tuple[list[Turn], int]:
    """A row's turns, and the number of the first one that may carry loss: a prompt does not."""
    if row.get("messages") is not None:
        return without_none(row["messages"]), 0
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return without_none([*prompt, *completion]), len(prompt)


def dated(template: str, date: str) -> str:
    """A template with this date in the place of today's, which would make other data in each attempt."""
    day = datetime.fromisoformat(date)
    fixed = NOW.sub(lambda call: json.dumps(day.strftime(call[2])), template)
    if "strftime_now(" in fixed:
        raise ComponentError(
            "datasets/chat: the chat template asks for today's date in a format that it makes itself, so each attempt would train on"
            " other data.",
            "Give a `chat_template` with the date, or with the format as a text: strftime_now('%d %b %Y').",
        )
    return fixed


class Encoder:
    """A row -> `tokens`, which of them are `trained`, and `whole`, how many there were before the cut at `context`."""

    def __init__(self, tokenizer: Any, template_args: Mapping[str, Any], date: str, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        template = tokenizer.get_chat_template()
        self.more = dict(template_args)
        if "strftime_now" in template:
            self.more["chat_template"] = dated(template, date)
        self.marked = MARKS.search(template) is not None

    def __call__(self, row: Mapping[str, Any], index: int, layout: int) -> dict[str, Any]:
        tools = without_none(row.get("tools")) or None
        turns, first = conversation(row)
        try:
            tokens, trained = (self.by_marks if self.marked else self.by_prefixes)(turns, first, tools)
        except ComponentError as error:
            raise ComponentError(f"datasets/chat: conversation {index}: {error.message}", error.hint) from None
        except (jinja2.TemplateError, KeyError, TypeError, ValueError) as error:
            what = f"the chat template does not take it: {type(error).__name__}: {error}"
            raise ComponentError(f"datasets/chat: conversation {index}: {what}.") from error
        trained[:1] = False  # nothing predicts it
        return {"tokens": tokens[: self.context], "trained": trained[: self.context], "whole": len(tokens)}

    def by_marks(self, turns: list[Turn], first: int, tools: Any) -> tuple[list[int], Flags]:
        """By the template's own marks. Those of the turns before `first` are taken away, one run of tokens for each."""
        how = {"return_dict": True, "return_assistant_tokens_mask": True}
        found = self.tokenizer.apply_chat_template(turns, tools=tools, **self.more, **how)
        trained = np.asarray(found["assistant_masks"], bool)
        if earlier := sum(turn["role"] == "assistant" for turn in turns[:first]):
            begins = np.flatnonzero(trained & ~np.r_[False, trained[:-1]])
            if len(begins) != sum(turn["role"] == "assistant" for turn in turns):
                raise ComponentError(
                    "the template does not mark each of the assistant's turns by itself, so nobody knows where those of the"
                    " prompt end.", "Write the conversation as `messages`, or give another `chat_template`.",
                )  # fmt: skip
            trained[: begins[earlier] if earlier < len(begins) else None] = False
        return found["input_ids"], trained

    def by_prefixes(self, turns: list[Turn], first: int, tools: Any) -> tuple[list[int], Flags]:
        """By the texts up to and including each of the assistant's turns."""
        whole = self.render(turns, tools)
        inside = np.zeros(len(whole) + 1, bool)
        for number, turn in enumerate(turns):
            if number < first or turn["role"] != "assistant":
                continue
            before = self.render(turns[:number], tools, add_generation_prompt=True)
            after = self.render(turns[: number + 1], tools)
            if not (whole.startswith(after) and after.startswith(before)):
                raise ComponentError(
                    f"the template writes the turns before turn {number} in another way once that or a later one follows (it"
                    " does not hold the prefix property), so which tokens the assistant adds cannot be told.",
                    "Give a `chat_template` with {% generation %} marks around what the assistant says.",
                )
            inside[len(before) : len(after)] = True
        found = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)[:, 0]
        return found["input_ids"], inside[starts]

    def render(self, turns: list[Turn], tools: Any, **how: Any) -> str:
        return self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, **self.more, **how)


def load(name: str, revision: str | None, config_name: str | None, split: str) -> Any:
    """One split's rows, of the Hub, of a folder or of one file; ComponentError if they are no conversations."""
    kind = KINDS.get(Path(name).suffix)
    if kind is None:
        rows = datasets.load_dataset(name, config_name, split=split, revision=revision)
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            raise ComponentError(f"datasets/chat: there is no file {name}.", "A relative path begins at the recipe's project.")
        rows = datasets.load_dataset(kind, data_files={split: str(path)}, split=split)
    columns = set(rows.column_names)
    if "messages" not in columns and not {"prompt", "completion"} <= columns:
        what = "needs the column `messages`, or `prompt` and `completion`"
        raise ComponentError(f"datasets/chat: {name} {what} (it has {', '.join(sorted(columns))}).")
    return rows


def documents(rows: Any) -> Documents:
    """What Encoder has made of a split, as `datasets` keeps it."""
    table = rows.with_format("arrow")[:]

    def flat(name: str) -> Any:
        return np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[name].chunks])

    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in table["tokens"].chunks])
    return Documents(flat("tokens"), flat("trained"), lengths.astype(np.int64), table["whole"].to_numpy())


class Chat(Rows):
    """Rows, and the tokenizer that has made them, which goes with the exported model."""

    def __init__(self, documents: Documents, numbers: NDArray[np.int64], tokenizer: Any, context: int, packing: bool) -> None:
        padding = next(n for n in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if n is not None)
        super().__init__(documents, numbers, context, packing, padding)
        self.tokenizer = tokenizer


def usable(encoded: Documents, split: str, skip_empty: bool, context: int) -> NDArray[np.int64]:
    """The numbers of the conversations in which a token carries loss.

    Raises:
        ComponentError: there are others, and nobody has said that they can be left out.
    """
    empty = np.flatnonzero(encoded.losses == 0)
    shown = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
    if len(empty) and not skip_empty:
        raise ComponentError(
            f"datasets/chat: {len(empty)} of {len(encoded.lengths)} conversations of the split {split} have no token that carries"
            f" loss within the first {context}: {shown}.",
            "Give them an assistant's turn, raise `context`, or leave them out: `skip_empty: true`.",
        )
    if len(empty):
        log.info("datasets/chat: %s: left out, as no token carries loss: %d conversations (%s).", split, len(empty), shown)
    return np.flatnonzero(encoded.losses)


def say(name: str, chat: Chat) -> None:
    numbers = np.concatenate(chat.rows)
    losses, tokens = int(chat.documents.losses[numbers].sum()), int(chat.documents.lengths[numbers].sum())
    told = f"{losses:,} of {tokens:,} tokens carry loss ({100 * losses / tokens:.1f} %)"
    cut = int((chat.documents.whole[numbers] > chat.context).sum())
    rows = f"{len(numbers):,} conversations" + (f" in {len(chat):,} rows" if chat.packing else "")
    log.info("datasets/chat: %s: %s; %s of at most %d tokens, %d cut.", name, told, rows, chat.context, cut)


def build(
    name: str,
    revision: str | None = None,
    config_name: str | None = None,
    train_split: str = "train",
    val_split: str | None = None,
    val_fraction: float = 0.0,
    tokenizer: str | None = None,
    tokenizer_revision: str | None = None,
    chat_template: str | None = None,
    template_args: dict[str, Any] | None = None,
    date: str = "2024-07-26",
    context: int = 1024,
    packing: bool = True,
    skip_empty: bool = False,
) -> dict[str, Chat]:
    """`train` and, if asked for, `val`, of dicts `input_ids`, `labels` and, where packed, `position_ids`: class Chat.

    `name` is owner/dataset (pin `revision` to a full commit), a local folder, or one file (.jsonl, .json, .parquet). `val` is
    `val_split`, or else every (1 / val_fraction)-th conversation. `tokenizer` is a name or folder for transformers' AutoTokenizer,
    or nothing for bytes. `chat_template`, a text or a file, takes the place of the tokenizer's own; `template_args` are what it
    takes besides, `date` what it gets where it asks for today's. `skip_empty` leaves out conversations without loss.
    """
    encoder = Encoder(load_tokenizer(tokenizer, tokenizer_revision, chat_template), template_args or {}, date, context)

    def encoded(which: str) -> tuple[Documents, NDArray[np.int64]]:
        rows = load(name, revision, config_name, which)
        how = {"with_indices": True, "remove_columns": rows.column_names, "fn_kwargs": {"layout": LAYOUT}}
        found = documents(rows.map(encoder, features=FEATURES, **how))
        return found, usable(found, which, skip_empty, context)

    whole, numbers = encoded(train_split)
    parts = {"train": (whole, numbers)}
    if val_split is not None:
        parts["val"] = encoded(val_split)
    elif val_fraction:
        every = round(1 / val_fraction)
        parts = {"train": (whole, np.delete(numbers, np.s_[every - 1 :: every])), "val": (whole, numbers[every - 1 :: every])}
    splits = {key: Chat(*part, encoder.tokenizer, context, packing) for key, part in parts.items() if len(part[1])}
    for key, split in splits.items():
        say(key, split)
    return splits
