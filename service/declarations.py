"""How a parameter is declared, and what is derived from a dataclass of declarations."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, ValidationError, create_model
from pydantic_core import core_schema

from service.errors import InvalidParameter

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ABOUT = "about"
# The key in a schema of the styles that a parameter changes; without it, it changes all.
STYLES = "x-styles"
LONGEST_SAID = 80
LONGEST_NAME = 100
NULL = {"type": "null"}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
Declared = TypeVar("Declared", bound="DataclassInstance")


def declare(default: Any, description: str, *, styles: tuple[str, ...] = (), **bounds: Any) -> Any:
    """Declare a field as a parameter.

    Args:
        default: `MISSING` for a parameter that has to be given.
        styles: the only styles of pictures that it changes.
        bounds: further arguments of `pydantic.Field`: bounds, examples.
    """
    extra: Any = {STYLES: list(styles)} if styles else None
    about = Field(description=description, json_schema_extra=extra, **bounds)
    return field(default=default, metadata={ABOUT: about})


def text_of(read: Callable[[str], Any], syntax: str, max_length: int) -> GetPydanticSchema:
    """Annotate a value that is written as text; `syntax` is for OpenAPI, `read` refuses in better words."""
    text = Annotated[str, Field(max_length=max_length, json_schema_extra={"pattern": syntax})]
    return GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(read, handler.generate_schema(text))
    )


@functools.cache
def model_of(kind: "type[DataclassInstance]") -> type[BaseModel]:
    """The pydantic model of a dataclass of parameters, which takes no other names."""
    hints = get_type_hints(kind, include_extras=True)
    members: dict[str, Any] = {
        f.name: (Annotated[hints[f.name], f.metadata.get(ABOUT)], ... if f.default is MISSING else f.default)
        for f in fields(kind)
    }
    only_these = ConfigDict(extra="forbid")
    return create_model(kind.__name__, __config__=only_these, __doc__=kind.__doc__, **members)


@functools.cache
def schema_of(kind: "type[DataclassInstance]") -> Mapping[str, dict[str, Any]]:
    """The JSON Schema of each parameter; what may be left out is not null, which no query can say."""
    properties: dict[str, Any] = without_null(model_of(kind).model_json_schema())["properties"]
    return properties


def read(kind: type[Declared], given: Mapping[str, Any], *, strict: bool = False) -> Declared:
    """Read parameters by their names; with `strict` no text is taken for a number.

    Raises:
        InvalidParameter: a name that does not exist, or a wrong value.
    """
    names = schema_of(kind)
    for name in given:
        if name not in names:
            known = ", ".join(names) or "none"
            raise InvalidParameter(
                f"there is no parameter {name[:LONGEST_NAME]!r}; there are: {known}",
                parameter=name[:LONGEST_NAME],
            )
    try:
        return kind(**vars(model_of(kind).model_validate(given, strict=strict)))
    except ValidationError as error:
        # Without the cause, whose text would be logged and holds more of what was sent.
        raise _refusal(error) from None


def part_of(values: object, kind: type[Declared]) -> Declared:
    """Take over the values that have the names of a class of parameters."""
    return kind(**{f.name: getattr(values, f.name) for f in fields(kind) if hasattr(values, f.name)})


def allowed(declared: Mapping[str, Any]) -> str:
    """The choices or bounds of a parameter in words; empty where it has none."""
    if "enum" in declared:
        return ", ".join(declared["enum"])
    return ", ".join(f"{word} {declared[key]:.12g}" for key, word in BOUNDS.items() if key in declared)


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """An object's schema whose members may be left out instead of null."""
    return schema | {"properties": {name: _not_null(told) for name, told in schema["properties"].items()}}


def _not_null(told: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in told.get("anyOf", ()) if kind != NULL]
    if NULL not in told.get("anyOf", ()) or len(kinds) != 1:
        return told
    kind: dict[str, Any] = kinds[0]
    return kind | {key: value for key, value in told.items() if key != "anyOf" and value is not None}


def _refusal(error: ValidationError) -> InvalidParameter:
    """What was given and what is allowed."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part)[:LONGEST_NAME] for part in first["loc"])
    given = first["input"]
    said = f"={str(given)[:LONGEST_SAID]}" if isinstance(given, str | int | float) else ""
    return InvalidParameter(f"{name}{said}: {first['msg']}", parameter=name)
