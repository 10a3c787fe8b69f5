"""`Part`: a frozen mapping with known keys, checked by pydantic-core.

A class's annotations become a schema of pydantic-core, which reads, checks and writes: what
pydantic's `BaseModel` does, for the kinds of annotations that a recipe has. `BaseModel` itself
takes longer to import and to build than everything else that `xrun check` does
(docs/decisions/0010-parts-without-basemodel.md).
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, Union, get_args, get_origin

from pydantic_core import SchemaSerializer, SchemaValidator, core_schema

CONFIG = core_schema.CoreConfig(extra_fields_behavior="forbid", strict=True, allow_inf_nan=False)
SCALARS = {
    int: core_schema.int_schema(),
    float: core_schema.float_schema(),
    str: core_schema.str_schema(),
    bool: core_schema.bool_schema(),
}
REQUIRED = object()


class Mark(Protocol):
    """What may stand beside the type in `Annotated`."""

    def over(self, schema: Any) -> Any:
        """The schema of pydantic-core for the type with this mark."""


class Field:
    """In `Annotated[int, Field(ge=1)]`: what a value keeps to, by pydantic-core's names."""

    def __init__(self, **limits: Any) -> None:
        self.limits = limits

    def over(self, schema: Any) -> Any:
        return {**schema, **self.limits}


class Before:
    """In `Annotated[Part, Before(function)]`: reads what was written before the type does."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def over(self, schema: Any) -> Any:
        return core_schema.no_info_before_validator_function(self.function, schema)


class Parsed:
    """In `Annotated[Type, Parsed(Type.parse, max_length=64)]`: a text within these limits that is
    read into a value, which `str()` turns back into the text. The function raises
    PydanticCustomError, or ValueError, for a text that it cannot read."""

    def __init__(self, function: Any, **limits: Any) -> None:
        self.function, self.limits = function, limits

    def over(self, schema: Any) -> Any:
        """The schema of pydantic-core, whatever the type's own is."""
        text = core_schema.str_schema(**self.limits)
        return core_schema.no_info_after_validator_function(
            self.function, text, serialization=core_schema.to_string_ser_schema()
        )


def default(written: Any) -> Any:
    """A default as a person would write it; it is read like what a person has written."""
    return written


class Key:
    """What may stand under a key of a part."""

    def __init__(self, annotation: Any, default: Any = REQUIRED) -> None:
        self.annotation = annotation
        self.default = default

    def is_required(self) -> bool:
        return self.default is REQUIRED

    def schema(self) -> Any:
        inner = schema_of(self.annotation)
        if not self.is_required():
            inner = core_schema.with_default_schema(
                inner, default=self.default, validate_default=True
            )
        return core_schema.model_field(inner)


def schema_of(annotation: Any) -> Any:
    """The schema of pydantic-core for a type's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation.core_schema
    if annotation in SCALARS:
        return SCALARS[annotation]
    if annotation is Any:
        return core_schema.any_schema()
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _marked(*inside)
    if origin in (Union, types.UnionType):
        return _union(inside)
    if origin is Literal:
        return core_schema.literal_schema(list(inside))
    if origin is dict:
        return core_schema.dict_schema(schema_of(inside[0]), schema_of(inside[1]))
    if origin is tuple and inside[1:] == (...,):
        return core_schema.tuple_schema([schema_of(inside[0])], variadic_item_index=0)
    return core_schema.is_instance_schema(annotation)


def _marked(inner: Any, *marks: Any) -> Any:
    schema = schema_of(inner)
    for mark in marks:
        schema = mark.over(schema)
    return schema


def _union(choices: tuple[Any, ...]) -> Any:
    some = [schema_of(choice) for choice in choices if choice is not type(None)]
    schema = some[0] if len(some) == 1 else core_schema.union_schema(some)
    return schema if len(some) == len(choices) else core_schema.nullable_schema(schema)


class Part:
    """Every part of a recipe: frozen, and a key that it does not know is an error.

    The names of the methods are pydantic's. A part may define `checked`, which has all keys in
    place and returns the part, or raises PydanticCustomError.
    """

    # Where pydantic-core puts what it has read.
    __slots__ = (
        "__dict__",
        "__pydantic_extra__",
        "__pydantic_fields_set__",
        "__pydantic_private__",
    )

    core_schema: ClassVar[Any]
    model_config: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    model_fields: ClassVar[Mapping[str, Key]] = {}
    _reader: ClassVar[SchemaValidator | None] = None
    _writer: ClassVar[SchemaSerializer | None] = None

    def __init_subclass__(cls) -> None:
        hints = inspect.get_annotations(cls, eval_str=True)
        cls.model_fields = {
            name: Key(hint, vars(cls).get(name, REQUIRED)) for name, hint in hints.items()
        }
        for name in hints.keys() & vars(cls).keys():
            delattr(cls, name)
        schemas = {name: key.schema() for name, key in cls.model_fields.items()}
        keys = core_schema.model_fields_schema(schemas, model_name=cls.__name__)
        config = core_schema.CoreConfig(**CONFIG, title=cls.__name__)
        made: Any = core_schema.model_schema(cls, keys, frozen=True, config=config)
        if "checked" in vars(cls):
            made = core_schema.no_info_after_validator_function(cls.checked, made)
        cls.core_schema = {**made, "ref": f"{cls.__module__}.{cls.__qualname__}:{id(cls)}"}

    def __init__(self, /, **written: Any) -> None:
        self._validator().validate_python(written, self_instance=self)

    @classmethod
    def _validator(cls) -> SchemaValidator:
        cls._reader = cls._reader or SchemaValidator(cls.core_schema)
        return cls._reader

    @classmethod
    def _serializer(cls) -> SchemaSerializer:
        cls._writer = cls._writer or SchemaSerializer(cls.core_schema)
        return cls._writer

    def checked(self) -> Self:
        return self

    @classmethod
    def model_validate(cls, written: Any) -> Self:
        """Raises ValidationError with everything that is wrong."""
        return cls._validator().validate_python(written)

    @classmethod
    def model_validate_json(cls, text: str) -> Self:
        return cls._validator().validate_json(text)

    def model_dump(self, mode: str = "python") -> dict[str, Any]:
        """The keys and values; with mode `json` only what JSON has."""
        return self._serializer().to_python(self, mode=mode)

    def model_dump_json(self) -> str:
        return self._serializer().to_json(self).decode()

    def given(self) -> dict[str, Any]:
        """The keys that are not at their defaults, as JSON; a part of which none is given is left
        out."""
        whole, given = self.model_dump(mode="json"), dict[str, Any]()
        for name, key in self.model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Part):
                given |= {name: inner} if (inner := value.given()) else {}
            # A default is as a person writes it, and so is the JSON of what is read of it.
            elif key.is_required() or key.default not in (value, whole[name]):
                given[name] = whole[name]
        return given

    def model_copy(self, update: Mapping[str, Any]) -> Self:
        """A part with other values, which are not checked."""
        copy = type(self).__new__(type(self))
        copy.__setstate__({**self.__dict__, **update})
        return copy

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of what people write."""
        from pydantic.json_schema import GenerateJsonSchema

        class Schemas(GenerateJsonSchema):
            def function_plain_schema(self, schema: Any) -> dict[str, Any]:
                return dict(schema["metadata"]["json_schema"])

        return Schemas().generate(cls.core_schema)

    def __setattr__(self, name: str, value: Any) -> None:
        # Raises ValidationError: it is frozen.
        self._validator().validate_assignment(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "__dict__", state)
        object.__setattr__(self, "__pydantic_fields_set__", set(state))
        object.__setattr__(self, "__pydantic_extra__", None)
        object.__setattr__(self, "__pydantic_private__", None)

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))  # raises TypeError where a part holds a dict

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({values})"
