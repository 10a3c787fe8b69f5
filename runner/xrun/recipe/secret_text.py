"""Texts, names and files that look like secrets: they never stand in a recipe, are never shown and
never travel."""

from __future__ import annotations

import re

NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_BY_NAME = re.compile(
    r"(^|[_-])(password|passwd|passphrase|secret|(api|secret|access|private|auth)[_-]?key"
    r"|(api|access|auth|bearer|hf|hub|wandb|github)[_-]?token)$",
    re.IGNORECASE,
)
"""Keys whose values are secrets, whatever they look like; not `token`, which tokenizers have."""
_TOKENS = (
    r"\bhf_[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bwandb_v1_\w{8,}"
    r"|\bsk-(?=[\w-]*[0-9])[\w-]{16,}"  # OpenAI, Anthropic and others
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{12,}\b"  # AWS
    r"|\bAIza[\w-]{30,}|\bya29\.[\w-]{16,}|\bGOCSPX-[\w-]{16,}"  # Google
    r"|\bxox[a-z]-[\w-]{10,}|\bxapp-[\w-]{10,}|hooks\.slack\.com/services/[\w/]{10,}"
    r"|\bAccountKey=[\w+/=]{20,}"  # Azure
    r"|\b(?:npm_|pypi-|dckr_pat_|nvapi-|rpa_|r8_|dapi|dop_v1_|tskey-)[\w-]{24,}"
    r"|\beyJ[\w-]{20,}"  # JSON Web Tokens
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY"
    r"|://[^\s/:@]*:[^\s/@]+@"  # an address with a password
)
_COMMIT = r"\b[0-9a-fA-F]{40}\b"
"""An older key of Weights & Biases, or the name of a commit."""
_OF_COMMITS = re.compile(
    r"revision|commit|sha|hash|digest|ref|version|init_from|image", re.IGNORECASE
)
_TOKEN, _KEY = re.compile(_TOKENS), re.compile(rf"(?<![@/]){_COMMIT}")
VALUE = re.compile(rf"{_TOKENS}|hf_\w{{8,}}|{_COMMIT}")
_FILE = re.compile(
    r"(^|\.)env(\.|$)|\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|asc|gpg)$"
    r"|^id_(rsa|dsa|ecdsa|ed25519)|^_?netrc$|htpasswd"
    r"|^(credentials?|secrets?|passwords?|token|application_default_credentials)(\.|$)"
    r"|service[_-]?account.*\.json$",
    re.IGNORECASE,
)


def looks_like_a_secret(value: str) -> bool:
    """Whether the text is a token, or an assignment of one, and not a variable's name."""
    return "=" in value or VALUE.search(value) is not None


def betrays(key: str, value: object) -> bool:
    """Whether a dotted key has a secret for its value, or is one."""
    if _TOKEN.search(key):
        return True
    if not isinstance(value, str) or not value:
        return False
    own = next((part for part in reversed(key.split(".")) if not part.isdigit()), "")
    is_name = re.fullmatch(r"[A-Z][A-Z0-9_]*", value) is not None
    if _BY_NAME.search(own) and not is_name:
        return True
    key_of_wandb = _KEY.search(value) is not None and not _OF_COMMITS.search(own)
    return key_of_wandb or _TOKEN.search(value) is not None


def assigns_a_secret(override: str) -> bool:
    """Whether `a.b=VALUE` has a secret for its value."""
    key, _, value = override.partition("=")
    return betrays(key, value) or is_alerts_address(key, value)


def is_alerts_address(key: str, value: str) -> bool:
    """Whether a value under `alerts` has an address in it, which is a secret whatever it looks
    like."""
    return key.partition(".")[0] == "alerts" and "://" in value


def without_secrets(text: str) -> str:
    """The text as it may be shown."""
    return VALUE.sub("***", text)


def is_secret_file(name: str) -> bool:
    """Whether a file is of those that hold secrets, by its name: keys, passwords, environments. A
    Python module is code, whatever it is called."""
    return name.startswith(".") or (not name.endswith(".py") and _FILE.search(name) is not None)
