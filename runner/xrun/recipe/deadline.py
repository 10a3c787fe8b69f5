"""`Deadline`: until when a run is to have finished, as a person writes it: so long after its first
launch, "36h" or "2d", or a time with its zone, "2026-12-01T18:00+01:00"."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime

from pydantic_core import PydanticCustomError

_SPAN = re.compile(r"([1-9][0-9]{0,6}(?:\.[0-9]{1,3})?)\s?([mhd])", re.ASCII)
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_EXPECTED = "must be a time after the first launch like `36h` or `2d`, or one with its zone like"
_EXAMPLE = "`2026-12-01T18:00+01:00`"


@dataclass(frozen=True)
class Deadline:
    """Either `seconds` after the first launch or `time`, in seconds since 1970. `str()` gives back
    the text it was made from."""

    text: str = field(compare=False)
    seconds: float | None = None
    time: float | None = None

    def after(self, launched: float) -> float:
        """When it is for a run that was first launched then; seconds since 1970."""
        if self.time is not None:
            return self.time
        assert self.seconds is not None
        return launched + self.seconds

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Deadline:
        """Raises PydanticCustomError for a text that is neither."""
        if found := _SPAN.fullmatch(text):
            return cls(text, seconds=float(found[1]) * _SECONDS[found[2]])
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            time = None
        if time is None or time.tzinfo is None:
            raise PydanticCustomError("sentence", f"{_EXPECTED} {_EXAMPLE}")
        return cls(text, time=time.timestamp())
