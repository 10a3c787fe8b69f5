"""A part is read, checked and written as pydantic's models are."""

from __future__ import annotations

import copy
import pickle
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic import Field as TheirField
from pydantic_core import PydanticCustomError

from xrun.recipe.base import Before, Field, Part, default


def doubled(value: Any) -> Any:
    return value * 2 if isinstance(value, str) else value


class Inner(Part):
    size: Annotated[int, Field(ge=1, le=9)] = 3
    names: Annotated[tuple[str, ...], Field(strict=False)] = ()


class Whole(Part):
    text: Annotated[str, Field(min_length=1, pattern="^[a-z]+$")]
    rate: Annotated[float, Field(gt=0)] | None = None
    switch: bool | Literal["auto"] = "auto"
    free: dict[str, Any] = default({})
    inner: Annotated[Inner, Before(lambda value: {} if value == "small" else value)] = default(
        "small"
    )
    twice: Annotated[str, Before(doubled)] | None = None

    def checked(self) -> Self:
        if self.text == "bad":
            raise PydanticCustomError("sentence", "not this one")
        return self


class TheirInner(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    size: Annotated[int, TheirField(ge=1, le=9)] = 3
    names: Annotated[tuple[str, ...], TheirField(strict=False)] = ()


class TheirWhole(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    text: Annotated[str, TheirField(min_length=1, pattern="^[a-z]+$")]
    rate: Annotated[float, TheirField(gt=0)] | None = None
    switch: bool | Literal["auto"] = "auto"
    free: dict[str, Any] = {}  # pydantic copies it
    inner: Annotated[
        TheirInner, BeforeValidator(lambda value: {} if value == "small" else value)
    ] = TheirField(default="small", validate_default=True)
    twice: Annotated[str, BeforeValidator(doubled)] | None = None


WRITTEN: list[dict[str, Any]] = [
    {"text": "abc"},
    {
        "text": "abc",
        "rate": 3,
        "switch": True,
        "free": {"a": [1]},
        "inner": {"size": 4, "names": ["x"]},
    },
    {"text": "abc", "inner": "small", "twice": "x"},
    {},
    {"text": "", "rate": 0},
    {"text": 3, "rate": float("inf")},
    {"text": "A", "switch": "yes"},
    {"text": "abc", "inner": {"size": 10, "names": [3], "other": 1}},
    {"text": "abc", "inner": 7, "free": []},
    {"text": "abc", "twice": 3},
    {"text": "abc", "rate": "1", "unknown": 1},
]


def said(part: type[Any], written: dict[str, Any]) -> Any:
    """What becomes of it: the values, or the errors with their places."""
    try:
        return part.model_validate(written).model_dump(mode="json")
    except ValidationError as error:
        return [
            (e["type"], e["loc"], e["msg"], e.get("ctx")) for e in error.errors(include_url=False)
        ]


@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_reads_like_pydantic(written: dict[str, Any]) -> None:
    """The same values and the same errors at the same places, from Python and from JSON."""
    assert repr(said(Whole, written)) == repr(said(TheirWhole, written)).replace("Their", "")


def test_own_check_comes_last() -> None:
    """A part's own check sees all keys, and its sentence is the error."""
    with pytest.raises(ValidationError, match="not this one"):
        Whole(text="bad")


def test_defaults_are_not_shared() -> None:
    """What a default holds belongs to one part."""
    one, other = Whole(text="a"), Whole(text="a")
    one.free["x"] = 1
    assert other.free == {}


def test_is_a_value() -> None:
    """Parts are compared by value, copied, pickled and never changed."""
    part = Whole(text="abc", inner={"size": 2})
    assert part == Whole(text="abc", inner={"size": 2}) != Whole(text="abc")
    assert pickle.loads(pickle.dumps(part)) == copy.deepcopy(part) == part  # noqa: S301  # our own bytes
    assert Whole.model_validate_json(part.model_dump_json()) == part
    assert part.model_copy(update={"text": "b"}).text == "b"
    assert len({Inner(size=2), Inner(size=2), Inner()}) == 2
    with pytest.raises(ValidationError, match="frozen"):
        part.text = "b"
    assert repr(part.inner) == "Inner(size=2, names=())"


def test_json_schema_is_pydantics() -> None:
    """Editors see what pydantic would tell them."""
    assert repr(Whole.model_json_schema()) == repr(TheirWhole.model_json_schema()).replace(
        "Their", ""
    )
