"""Options made from settings and parameters, so that each has one name and one description everywhere."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from service.declarations import Declared, allowed, schema_of
from service.settings import Settings

# What matters where no server is started.
OFFLINE = ("models", "graph_optimization", "provider", "provider_fallback", "threads", "network_threads")
METAVARS = {"integer": "int", "number": "float", "string": "text"}


def setting_options(names: Sequence[str] = tuple(Settings.model_fields)) -> Callable[[Any], Any]:
    """Add an option for each of these settings, and `--config`; given ones arrive as `options`."""
    settings = Settings.model_json_schema()["properties"]
    config = {"type": "string", "format": "file", "description": "TOML file of settings"}
    return _gathering("options", {"config": config, **{name: settings[name] for name in names}})


def parameter_options(kind: type[Declared], *, without: Sequence[str]) -> Callable[[Any], Any]:
    """Add an option for each parameter but some; given ones arrive as `asked`."""
    return _gathering("asked", {n: told for n, told in schema_of(kind).items() if n not in without})


def _gathering(argument: str, schema: Mapping[str, Mapping[str, Any]]) -> Callable[[Any], Any]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathered(**values: Any) -> Any:
            options = {name: values.pop(name) for name in schema}
            given = {name: value for name, value in options.items() if value not in (None, ())}
            return command(**{argument: given}, **values)

        wrapped: Callable[..., Any] = gathered
        for name, told in reversed(list(schema.items())):
            wrapped = _option(name, told)(wrapped)
        return wrapped

    return decorate


def _option(name: str, told: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Pydantic parses and bounds the value; click only knows choices, flags and repetition."""
    flag = f"--{name.replace('_', '-')}"
    if told["type"] == "boolean":
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=_help(told))
    if told["type"] == "array":
        metavar = told["items"].get("format", "value").upper()
        return click.option(flag, name, multiple=True, metavar=metavar, help=f"{_help(told)} Repeatable.")
    metavar = "|".join(told.get("enum", ())) or told.get("format", METAVARS[told["type"]]).upper()
    return click.option(flag, name, metavar=metavar, help=_help(told))


def _help(told: Mapping[str, Any]) -> str:
    bounds = "" if "enum" in told else allowed(told)
    default = told.get("default")
    shown = ", ".join(default) if isinstance(default, list) else "" if default is None else str(default)
    notes = [bounds, f"default: {shown}" if shown else ""]
    return f"{told['description']}." + "".join(f"  [{note}]" for note in notes if note)
