"""Texts and names that look like secrets: they never stand in a recipe and are never shown."""

from __future__ import annotations

import re

NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
VALUE = re.compile(
    r"hf_\w{8,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|AKIA[0-9A-Z]{12,}"
    r"|wandb_v1_\w{8,}|\b[0-9a-fA-F]{40}\b|eyJ[\w-]{20,}"
)


def looks_like_a_secret(value: str) -> bool:
    """Whether the text is a token, or an assignment of one, and not a variable's name."""
    return "=" in value or VALUE.search(value) is not None


def without_secrets(text: str) -> str:
    """The text as it may be shown."""
    return VALUE.sub("***", text)
