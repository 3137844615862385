"""The `featuremaps` command: `serve`, `models`, `layers`, `extract`, `render`, `key`."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from service import __version__
from service.cli.logs import set_up
from service.cli.options import OFFLINE, parameter_options, setting_options
from service.cli.statuses import BAD_USAGE, FAILED
from service.declarations import read
from service.errors import ConfigurationError, InvalidParameter, ServiceError
from service.settings import Settings, read_settings, service_links
from service.values import Layer
from service.web.keys import INFER, SCOPES, make_key
from service.web.queries import FeaturesQuery, LayersQuery, RenderQuery

log = logging.getLogger("featuremaps.settings")
IMAGE_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COLUMNS = ("index", "name", "op", "shape", "dtype", "reduction", "field", "macs", "stage")


class OneLine(click.Group):
    """Errors of ours are one line on standard error: 2 for settings and usage, 1 for the rest."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (ConfigurationError, InvalidParameter) as error:
            _complain(str(error), BAD_USAGE)
        except ServiceError as error:
            _complain(error.detail, FAILED)


def _complain(text: str, status: int) -> None:
    click.echo(f"featuremaps: {text}", err=True)
    sys.exit(status)


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="featuremaps")
def main() -> None:
    """Any layer's feature maps of any ONNX CNN.

    \b
    Examples:
      featuremaps serve --models ./models
      featuremaps layers cifar-resnet
      featuremaps extract cifar-resnet photo.jpg --layers stages --output maps.npz
    """


@main.command()
@setting_options()
def serve(options: Mapping[str, Any]) -> None:
    """Serve models over HTTP.

    \b
    Examples:
      featuremaps serve
      featuremaps serve --models ./models --port 9000 --graph-optimization off
      FEATUREMAPS_PORT=9000 featuremaps serve --models resnet50.onnx
    """
    settings = _settings(options)
    if settings.workers > 1:
        from service.cli.workers import supervise as run
    else:
        from service.cli.server import run
    run(settings)


@main.command()
@setting_options(OFFLINE)
def models(options: Mapping[str, Any]) -> None:
    """List models with their versions, states and the reason of a failure.

    \b
    Example:
      featuremaps models --models ./models
    """
    with _pipeline(options) as pipeline:
        asyncio.run(pipeline.models.load_all())
        rows = [entry.summary() for entry in pipeline.catalog.entries.values()]
    table = [(m.name, ",".join(m.versions), m.state, m.reason or "") for m in rows]
    _print_table(("name", "versions", "state", "reason"), table)


@main.command()
@click.argument("model")
@parameter_options(LayersQuery, without=["version"])
@setting_options(OFFLINE)
def layers(model: str, asked: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """List the layers of MODEL: a model's name, or the path of an .onnx file.

    \b
    Examples:
      featuremaps layers cifar-resnet
      featuremaps layers resnet50.onnx --layers stages
      featuremaps layers resnet50.onnx --layers 'module:layer3.*'
    """
    with _pipeline(options, model) as pipeline:
        query = read(LayersQuery, asked)
        found = asyncio.run(pipeline.layers(_name(model), None, query.layers, query.size)).layers
    rows = [
        (
            str(x.index),
            _shown_name(x),
            x.op,
            "x".join(str(s if s is not None else "?") for s in x.shape) if x.shape else "?",
            x.dtype,
            _pair(x.reduction),
            f"{_pair(x.receptive_field.size)} {x.receptive_field.status}",
            "?" if x.macs is None else f"{x.macs:,}",
            "" if x.stage is None else str(x.stage),
        )
        for x in found
    ]
    _print_table(COLUMNS, rows)


def _shown_name(layer: Layer) -> str:
    """A layer's name, with the path of its module where the name alone says nothing (`getitem_3`)."""
    atoms = [atom for atom in (layer.module or "").split(".") if not atom.isdecimal()]
    if layer.module is None or (atoms and atoms[-1] in layer.name):
        return layer.name
    return f"{layer.name} ({layer.module})"


@main.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=IMAGE_FILE)
@parameter_options(FeaturesQuery, without=["version", "timeout_s"])
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A file for one image, a folder (a name without an ending) for any number, or `-`.  [default: here]",
)
@setting_options(OFFLINE)
def extract(
    model: str,
    images: Sequence[Path],
    output: Path | None,
    options: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> None:
    """Write the feature maps of IMAGES, one file each, in the format that OUTPUT ends with.

    \b
    Examples:
      featuremaps extract cifar-resnet cat.jpg
      featuremaps extract resnet50.onnx cat.jpg --layers 'op:Relu' -o maps.safetensors
      featuremaps extract cifar-resnet photos/*.jpg --layers stage:-1 --format npy -o features/
    """
    from service.cli.extraction import run_extraction

    query = read(FeaturesQuery, asked)
    with _pipeline(options, model) as pipeline:
        asyncio.run(run_extraction(pipeline, _name(model), query, images, output))


@main.command()
@click.argument("model")
@click.argument("layer")
@click.argument("image", type=IMAGE_FILE)
@parameter_options(RenderQuery, without=["layer", "version", "timeout_s"])
@click.option("-o", "--output", type=click.Path(path_type=Path), help="`-` is standard output.")
@setting_options(OFFLINE)
def render(
    model: str,
    layer: str,
    image: Path,
    output: Path | None,
    options: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> None:
    """Draw the feature map of one LAYER of IMAGE, in the format that OUTPUT ends with.

    \b
    Examples:
      featuremaps render cifar-resnet stem.relu cat.jpg -o map.png
      featuremaps render cifar-resnet stage3.block2.relu cat.jpg --style overlay -o cat.webp
    """
    from service.cli.extraction import picture_format, run_rendering

    chosen = asked.get("format") or picture_format(output)
    query = read(RenderQuery, {**asked, "layer": layer, "format": chosen})
    with _pipeline(options, model) as pipeline:
        asyncio.run(run_rendering(pipeline, _name(model), query, image.read_bytes(), output))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def bench(words: Sequence[str]) -> None:
    """Removed: the README's section "Measuring" shows public tools that measure the service."""
    raise ConfigurationError(
        "bench is removed: perf_analyzer, wrk and curl measure the service; "
        "the README's section 'Measuring' shows how"
    )


@main.command()
@click.argument("name")
@click.option("--scope", type=click.Choice(tuple(SCOPES)), default=INFER, show_default=True)
def key(name: str, scope: str) -> None:
    """Make a key for the caller NAME: the token, which is shown this once, and the line to store.

    Keys of one name are one caller's, so a new one is added before the old one is taken away.

    \b
    Examples:
      featuremaps key laboratory
      featuremaps key operator --scope admin 2>token >>keys.txt
    """
    token, line = make_key(name, scope)
    click.echo(f"send:  Authorization: Bearer {token}", err=True)
    click.echo(line)


@contextlib.contextmanager
def _pipeline(options: Mapping[str, Any], model: str | None = None) -> Iterator[Any]:
    """The service's own pipeline without the door; an .onnx file can stand where a name is asked for."""
    from service.app import make_pipeline

    # Nobody but the caller is harmed by a bad file here.
    settings = _settings(options).model_copy(update={"check_models": "off"})
    if model is not None and model.endswith(".onnx"):
        settings = settings.model_copy(update={"models": (Path(model),)})
    pipeline = make_pipeline(settings)
    try:
        yield pipeline
    finally:
        pipeline.close()


def _settings(options: Mapping[str, Any]) -> Settings:
    settings = read_settings(options, os.environ)
    set_up(settings)
    for variable in service_links(os.environ):
        log.info("ignoring %s: it looks like a Kubernetes service link", variable)
    return settings


def _name(model: str) -> str:
    return Path(model).stem if model.endswith(".onnx") else model


def _pair(pair: tuple[Any, Any] | None) -> str:
    if pair is None:
        return "?"
    y, x = (f"{float(value):g}" for value in pair)
    return y if x == y else f"{y}x{x}"


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
