"""A process of its own that stores on a Hub: with and without hf_xet, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loopback.hub import Hub
from support.hub_store import (
    HUB_WARNINGS,
    requests,
)
from support.paths import WITH_SUPPORT

pytestmark = HUB_WARNINGS


SMOKE = """
import os, pathlib, sys
from xrun.store.hub.store import HubStore, stored_files
folder, expected = sys.argv[1:]
cache = pathlib.Path(folder) / "cache"
store = HubStore("hub://alice/digits", "digits-1", "a1", "me", cache, spacing=0)
head = store.commit({}, store.head())
file = store.put([b"weights" * 10000])
store.commit({"file": file.to_json()}, head)
other = HubStore("hub://alice/digits", "digits-1", "a2", "me", pathlib.Path(folder) / "elsewhere")
other.head()
assert other.fetch(file).read_bytes() == b"weights" * 10000
assert not {"torch", "numpy"} & sys.modules.keys()
print("done")
"""

MEMORY = """
import os, pathlib, sys
from xrun.store.hub.store import HubStore, stored_files
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
folder = pathlib.Path(sys.argv[1])
store = HubStore("hub://alice/digits", "digits-1", "a1", "me", folder / "cache", spacing=0)
head = store.commit({}, store.head())
store.put([b"warm" * 1000])
chunk = bytes(bytearray(b"x") * (16 << 20))
before = peak()
file = store.put(chunk for _ in range(8))
head = store.commit({"file": file.to_json()}, head)
other = HubStore("hub://alice/digits", "digits-1", "a2", "me", folder / "elsewhere")
other.head()
other.fetch(file)
print(file.size, peak() - before)
"""


def run_python(code: str, hub: Hub, *args: str, **environ: str) -> str:
    env = {**os.environ, **hub.environ("alice"), **environ, "PYTHONPATH": WITH_SUPPORT}
    return subprocess.run(
        [sys.executable, "-c", code, *args], env=env, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_a_process_of_its_own_with_and_without_xet(hub: Hub, tmp_path: Path, disabled: str) -> None:
    """The token and the endpoint come from the environment, and torch is not needed."""
    assert run_python(SMOKE, hub, str(tmp_path), "x", HF_HUB_DISABLE_XET=disabled) == "done\n"
    if disabled == "1":
        assert not [line for line in requests(hub) if "/cas/" in line]


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc to see a process's memory"
)
def test_memory_stays_flat_while_a_large_file_is_sent_and_fetched(hub: Hub, tmp_path: Path) -> None:
    """128 MB in chunks are hashed, sent, fetched and verified with less than 64 MB of memory of
    their own."""
    size, growth_kb = map(
        int, run_python(MEMORY, hub, str(tmp_path), HF_HUB_DISABLE_XET="1").split()
    )
    assert size == 128 << 20
    assert growth_kb < 64 << 10
