"""`Every`: how often something happens, as a person writes it: "500 steps", "1 epochs", "10m",
"auto"."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import PydanticCustomError, core_schema

TIME = r"[1-9][0-9]{0,8}(\.[0-9]{1,3})?\s?[smh]"
STEPS = r"[1-9][0-9]{0,14}\s?steps?"
EPOCHS = r"[1-9][0-9]{0,8}\s?epochs?"
NUMBER = re.compile(r"[0-9.]+")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
PATTERNS = {"auto": "auto", "seconds": TIME, "steps": STEPS, "epochs": EPOCHS}
EXAMPLES = {
    "auto": "`auto`",
    "seconds": "a time like `10m`",
    "steps": "`500 steps`",
    "epochs": "`1 epochs`",
}


@dataclass(frozen=True)
class Every:
    """One of seconds, steps and epochs, or none of them: `auto`. `str()` gives back the text it was
    made from."""

    text: str = field(compare=False)
    seconds: float | None = None
    steps: int | None = None
    epochs: int | None = None

    @property
    def auto(self) -> bool:
        return self.unit == "auto"

    @property
    def unit(self) -> str:
        """The name of the attribute that is set: seconds, steps, epochs or auto."""
        return next(
            (unit for unit in ("seconds", "steps", "epochs") if getattr(self, unit) is not None),
            "auto",
        )

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Every:
        """Raises ValueError if the text is none of the four kinds."""
        kinds = (kind for kind, like in PATTERNS.items() if re.fullmatch(like, text, re.ASCII))
        unit, number = next(kinds, None), NUMBER.match(text)
        if unit == "auto":
            return cls(text)
        if unit is None or number is None:
            raise ValueError(f"{text!r} is not an interval")
        if unit == "seconds":
            return cls(text, seconds=float(number[0]) * SECONDS[text[-1]])
        return cls(text, **{unit: int(number[0])})


@dataclass(frozen=True)
class Interval:
    """In `Annotated[Every, interval("steps")]`: an `Every` that may only be of these units."""

    units: tuple[str, ...]

    def over(self, schema: Any) -> Any:
        """The schema of pydantic-core, whatever the type's own is."""
        alternatives = "|".join(PATTERNS[unit] for unit in self.units)
        shape = {"type": "string", "format": "interval", "pattern": f"^({alternatives})$"}
        return core_schema.no_info_plain_validator_function(
            self.reader(),
            serialization=core_schema.to_string_ser_schema(),
            metadata={"json_schema": shape},
        )

    def reader(self) -> Callable[[Any], Every]:
        """A function that turns what was written into an `Every`, or says what may stand there."""
        examples = [EXAMPLES[unit] for unit in self.units]
        expected = (
            "must be " + (", ".join(examples[:-1]) + " or " if examples[1:] else "") + examples[-1]
        )

        def read(value: Any) -> Every:
            try:
                every = value if isinstance(value, Every) else Every.parse(value)
            except (TypeError, ValueError):
                raise PydanticCustomError("sentence", expected) from None
            if every.unit not in self.units:
                raise PydanticCustomError("sentence", expected)
            return every

        return read


def interval(*units: str) -> Interval:
    return Interval(units)
