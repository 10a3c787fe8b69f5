"""A run's head, read where the run keeps its state: what is committed, and how fast it went.

Only what a decision needs, by the standard library: from the Hub by HTTPS, from a folder that this
machine sees, from S3 where boto3 is installed. Whatever cannot be read is no head, and then the
time that machines were there has to do.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 20.0
"""How long one question may take."""
_COMMIT = re.compile(r"\d{8,}\.json")


@dataclass(frozen=True)
class Head:
    """The newest committed step, when the newest attempt began (seconds since 1970), its steps per
    second, and the steps of an epoch; None for what nobody knows. `reason`: why that attempt has
    ended, if anybody has recorded it."""

    step: int
    began: float
    rate: float | None = None
    steps_per_epoch: int | None = None
    reason: str = ""


def read_head(state: str, environ: Mapping[str, str]) -> Head | None:
    """What a run has committed at its address; `environ` has the job's variables and secrets."""
    scheme, _, rest = state.rpartition("://")
    try:
        text: bytes | None = None
        if scheme in ("hub", "hub-bucket"):
            text = _from_hub(rest, environ)
        elif scheme == "s3":
            text = _from_s3(rest, environ)
        elif state and not scheme:
            text = _from_folder(Path(state).expanduser())
        return _head(json.loads(text)["record"]) if text else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _from_hub(name: str, environ: Mapping[str, str]) -> bytes:
    base = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    url = f"{base.rstrip('/')}/{urllib.parse.quote(name)}/resolve/state/head.json"
    token = environ.get("HF_TOKEN", "")
    # Not as an ordinary header: that would follow a redirect to another host.
    request = urllib.request.Request(url)  # noqa: S310  the address is that of a Hub
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310  likewise
        return bytes(answer.read())


def _from_folder(folder: Path) -> bytes | None:
    names = sorted(name for name in os.listdir(folder / "commits") if _COMMIT.fullmatch(name))
    return (folder / "commits" / names[-1]).read_bytes().splitlines()[0] if names else None


def _from_s3(name: str, environ: Mapping[str, str]) -> bytes | None:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return None
    bucket, _, prefix = name.partition("/")
    try:
        client = boto3.client(
            "s3",
            endpoint_url=environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"),
            aws_access_key_id=environ.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY"),
            aws_session_token=environ.get("AWS_SESSION_TOKEN"),
            region_name=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
        )
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix="/".join(filter(None, [prefix, "commits/"]))
        )
        keys = sorted(each["Key"] for page in pages for each in page.get("Contents", []))
        return (
            client.get_object(Bucket=bucket, Key=keys[-1])["Body"].read().splitlines()[0]
            if keys
            else None
        )
    except (BotoCoreError, ClientError):
        return None


def _head(record: Mapping[str, Any]) -> Head:
    attempts: list[Mapping[str, Any]] = record.get("attempts") or [{}]
    newest = attempts[-1]
    own = [each for each in record.get("checkpoints", []) if each["attempt"] == newest.get("id")]
    began = float(newest.get("started", 0.0))
    steps = [(int(each["step"]), float(each["time"])) for each in own]
    steps = steps if len(steps) > 1 else [(_first_step(newest), began), *steps]
    (first, since), (last, until) = min(steps), max(steps)
    rate = (last - first) / (until - since) if last > first and until > since else None
    counted = [each["steps_per_epoch"] for each in attempts if each.get("steps_per_epoch")]
    committed = [int(each["step"]) for each in record.get("checkpoints", [])]
    return Head(
        max(committed, default=0),
        began,
        rate,
        counted[-1] if counted else None,
        str(newest.get("reason") or ""),
    )


def _first_step(attempt: Mapping[str, Any]) -> int:
    step = attempt.get("resumed_step")
    return max(0, int(attempt.get("from_step", -1) if step is None else step))
