"""Options made from the settings, so that each has one name and one description everywhere."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin

import click

from service.settings import Settings
from service.values import Combine, DtypeChoice, Normalize, PictureFormat, Pool, Style

# What matters where no server is started.
OFFLINE = ("models", "graph_optimization", "provider", "provider_fallback", "threads", "network_threads")


def setting_options(names: Sequence[str] = tuple(Settings.model_fields)) -> Callable[[Any], Any]:
    """Add `--some-name` for each of these settings, and `--config`; given ones arrive as `options`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathered(**values: Any) -> Any:
            keys = ("config", *names)
            options = {key: values.pop(key) for key in keys}
            return command(options={k: v for k, v in options.items() if v not in (None, ())}, **values)

        wrapped: Callable[..., Any] = gathered
        for name in reversed(names):
            wrapped = _option(name)(wrapped)
        return click.option("--config", metavar="FILE", help="TOML file of settings.")(wrapped)

    return decorate


def reduction_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what can be done to every map, in the order in which it is done."""
    for option in reversed(
        (
            click.option("--channels", metavar="0..15,32|top:8", help="Which channels."),
            click.option("--region", metavar="x,y,w,h|pct:x,y,w,h", help="Part of the upright photograph."),
            click.option(
                "--pool", type=click.Choice(get_args(Pool)), default="none", help="Over rows and columns."
            ),
            click.option("--grid", metavar="HxW", help="Adaptive average pooling to that size."),
            click.option(
                "--dtype", type=click.Choice(get_args(DtypeChoice)), default="native", help="Of the values."
            ),
        )
    ):
        command = option(command)
    return command


def drawing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add how a map is drawn; bounds are checked where it is drawn."""
    number: dict[str, Any] = {"type": float}
    whole: dict[str, Any] = {"type": int}
    for option in reversed(
        (
            click.option("--style", type=click.Choice(get_args(Style)), default="grid", show_default=True),
            click.option("--channel", help="For --style channel.", **whole),
            click.option("--combine", type=click.Choice(get_args(Combine)), default="mean"),
            click.option("--normalize", type=click.Choice(get_args(Normalize)), default="layer"),
            click.option("--vmin", help="For --normalize fixed.", **number),
            click.option("--vmax", help="For --normalize fixed.", **number),
            click.option("--clip", default=0.0, help="Percent of the values that saturate.", **number),
            click.option("--colormap", help="A name that the package cmap knows."),
            click.option("--columns", help="Tiles in a row of the grid.", **whole),
            click.option("--scale", help="Pixels a cell.", **whole),
            click.option("--image-weight", default=0.5, help="Weight of the photograph, 0 to 1.", **number),
            click.option("--target", help="Class index for --style cam.", **whole),
            click.option(
                "--format",
                "kind",
                type=click.Choice(get_args(PictureFormat)),
                help="Default: as OUTPUT ends.",
            ),
        )
    ):
        command = option(command)
    return command


def _option(name: str) -> Callable[[Any], Any]:
    """Pydantic parses and bounds the value; click only knows choices, flags and repetition."""
    field = Settings.model_fields[name]
    flag = f"--{name.replace('_', '-')}"
    shown = "" if field.default == () else f"  [default: {field.default}]"
    text = f"{field.description}.{shown}"
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    if get_origin(field.annotation) is tuple:
        metavar = "PATH" if name == "models" else "VALUE"
        return click.option(flag, name, multiple=True, metavar=metavar, help=text + " Repeatable.")
    choices = [str(choice) for choice in get_args(field.annotation)]
    metavar = "|".join(choices) or getattr(field.annotation, "__name__", "value").upper()
    return click.option(flag, name, metavar=metavar, help=text)
