"""A process that stays: for each line on its input it asks the API server for all managed jobs and
answers in one line of JSON.

`import sky` takes seconds, so a test that looks every second cannot start a program each time; its
own process has another HOME.
"""

from __future__ import annotations

import json
import sys

import sky
from sky import jobs

FIELDS = ["job_id", "job_name", "status", "recovery_count", "failure_reason", "end_at"]


def main() -> None:
    """Until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    for _ in sys.stdin:
        found = sky.get(jobs.queue_v2(refresh=False, fields=FIELDS))[0]
        records = [
            {name: job.get(name) for name in FIELDS} | {"status": job["status"].value}
            for job in found
        ]
        print(json.dumps(records), file=answers, flush=True)


if __name__ == "__main__":
    main()
