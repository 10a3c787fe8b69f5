"""What W&B knows, asked before a step is trained or a cent is spent.

`python -m xrun.tracker.wandb.witness PLAN` prints one line of JSON: `{"answer": "commit", "step",
"head", "seen"}` (`seen` is when the last row was logged), `{"answer": "none"}` (no such run, or
nothing committed) or `{"answer": "unknown", "why"}`. With `--account` it prints what is wrong with
the key, the entity and the project, and where the run can be seen: `{"problems": [{"what",
"hint"}], "url"}`. It never imports wandb.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...run.plan import Plan
from .api import (
    KEY_LENGTH,
    Deleted,
    Refused,
    RunPath,
    Unreachable,
    Viewer,
    api_key,
    is_read_only,
    run_status,
    run_url,
    viewer,
)
from .tracker import commit_of

_LOGIN = "Run `wandb login`, or set WANDB_API_KEY (https://wandb.ai/authorize)."


def main(path: str, *options: str) -> int:
    """Print the answer; the exit code is 0 whatever it is."""
    plan = Plan.read(Path(path))
    answer = account(plan) if "--account" in options else last_commit(plan)
    print(json.dumps(answer), flush=True)
    return 0


def last_commit(plan: Plan) -> dict[str, Any]:
    """The run's last commit as W&B's summary has it, and the time of its last row."""
    try:
        status = run_status(RunPath.of(plan))
    except (Unreachable, Refused, Deleted) as error:
        return {"answer": "unknown", "why": str(error) or type(error).__name__}
    if status is None or (known := commit_of(status)) is None:
        return {"answer": "none"}
    seen = status.last.get("_timestamp")
    return {"answer": "commit", "step": known[0], "head": known[1], "seen": seen}


def account(plan: Plan) -> dict[str, Any]:
    """Everything that would keep the run from being written; `silent` is why W&B does not say."""
    address = RunPath.of(plan)
    try:
        who = viewer()
        problems = list(_problems(address, who))
        url = run_url(RunPath(address.entity or who.entity, address.project, address.run))
    except Refused as error:
        problems, url = [_wrong_key(error)], ""
    except Unreachable as error:
        return {"problems": [], "url": "", "silent": str(error)}
    return {"problems": problems, "url": url, "silent": ""}


def _problems(address: RunPath, who: Viewer) -> Iterator[dict[str, str]]:
    entity, own = address.entity or who.entity, [who.entity, *who.teams]
    if entity not in own:
        yield {
            "what": f"your key has no access to the entity {entity}",
            "hint": (
                f"Your W&B key is {who.entity}'s: set tracking.wandb.entity to one of"
                f" {', '.join(own)}."
            ),
        }
    elif is_read_only(entity, address.project):
        yield {
            "what": f"the W&B project {entity}/{address.project} is read-only for you",
            "hint": "Ask its owner for write access, or set tracking.wandb.project to another one.",
        }


def _wrong_key(error: Refused) -> dict[str, str]:
    """What to say of a key that the server does not take; a wrong length is worth a word."""
    key = api_key()
    length = (
        f" (it has {len(key)} characters; keys have {KEY_LENGTH} or more)"
        if key and len(key) < KEY_LENGTH
        else ""
    )
    return {"what": f"Weights & Biases refuses: {error}{length}", "hint": _LOGIN}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
