"""What a page is not to show: secrets, wherever they stand in a recipe, a lock or a log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..recipe.secret_text import NAME, betrays, without_secrets
from ..run.plan import leaves
from ..terminal import shown, without_colours

_HIDDEN = "***"
_LEAST = 8
"""Characters of a value in the environment that is looked for; shorter ones stand in many texts."""


def known_secrets(
    recipe: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """The values of this machine's environment that are secrets, by their names or because the
    recipe names them, as those of `secrets` and `alerts`, the longest first."""
    named = {each for _, value in leaves(recipe or {}) for each in _names(value)}
    values = {v for name, v in environ.items() if NAME.search(name) or name in named}
    return tuple(sorted((v for v in values if len(v) >= _LEAST), key=len, reverse=True))


def _names(value: Any) -> list[str]:
    """What may be the names of variables."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [each for each in listed if isinstance(each, str) and each.isupper()]


def printed(text: str, secrets: tuple[str, ...] = ()) -> str:
    """What a process has printed, as it may be shown: no secrets, no colours, nothing that would be
    obeyed."""
    for value in secrets:
        text = text.replace(value, _HIDDEN)
    return shown(without_secrets(without_colours(text).replace("\r\n", "\n").replace("\r", "\n")))


def told(value: Any, secrets: tuple[str, ...] = (), key: str = "") -> Any:
    """The same values, with those hidden that are secrets; commits stay."""
    if isinstance(value, Mapping):
        # The Hub's names are keys of a lock, and its commits their values.
        parts = value.items()
        return {name: told(each, secrets, f"{key}.{name}") for name, each in parts}
    if isinstance(value, list | tuple):
        return [told(each, secrets, f"{key}.{place}") for place, each in enumerate(value)]
    if isinstance(value, str):
        is_commit = key.startswith((".hub.", ".moved."))
        if (not is_commit and betrays(key, value)) or any(each in value for each in secrets):
            return _HIDDEN
    return value
