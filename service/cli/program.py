"""The `featuremaps` command: `serve`, `models`, `layers`, `extract`, `render`, `bench`, `key`."""

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click

from service import __version__
from service.cli.logs import set_up
from service.cli.options import OFFLINE, drawing_options, reduction_options, setting_options
from service.cli.statuses import BAD_USAGE, FAILED
from service.errors import ConfigurationError, ServiceError
from service.output.table import FORMATS
from service.output.words import read_channels, read_grid, read_region
from service.settings import KEY_VARIABLE, Settings, read_settings, service_links
from service.values import Compress, Drawing, Layer, Reduction
from service.web.keys import INFER, SCOPES, make_key
from service.web.queries import SIDES

log = logging.getLogger("featuremaps.settings")
SECONDS = click.FloatRange(0.1, 3600)
IMAGE_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COLUMNS = ("index", "name", "op", "shape", "dtype", "reduction", "field", "macs", "stage")


class OneLine(click.Group):
    """Errors of ours are one line on standard error: 2 for settings and usage, 1 for the rest."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
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
@click.option("--layers", "words", multiple=True, help="Which layers, as over HTTP; repeatable.")
@click.option("--size", metavar="HxW", help="Input size, where it is dynamic.")
@setting_options(OFFLINE)
def layers(model: str, words: Sequence[str], size: str | None, options: Mapping[str, Any]) -> None:
    """List the layers of MODEL: a model's name, or the path of an .onnx file.

    \b
    Examples:
      featuremaps layers cifar-resnet
      featuremaps layers resnet50.onnx --layers stages
      featuremaps layers resnet50.onnx --layers 'module:layer3.*'
    """
    with _pipeline(options, model) as pipeline:
        chosen = words or ("all",)
        found = asyncio.run(pipeline.layers(_name(model), None, chosen, _sides(size))).layers
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
@click.option("--layers", "words", multiple=True, default=("stages",), help="Which layers; repeatable.")
@reduction_options
@click.option("--format", "kind", type=click.Choice(tuple(FORMATS)), help="Default: npz, or as OUTPUT ends.")
@click.option("--compress", type=click.Choice(get_args(Compress)), default="none", help="For npz.")
@click.option("--size", metavar="HxW", help="Input size, where it is dynamic.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A file for one image, a folder (a name without an ending) for any number, or `-`.  [default: here]",
)
@setting_options(OFFLINE)
def extract(
    model: str, images: Sequence[Path], output: Path | None, options: Mapping[str, Any], **asked: Any
) -> None:
    """Write the feature maps of IMAGES, one file each.

    \b
    Examples:
      featuremaps extract cifar-resnet cat.jpg
      featuremaps extract resnet50.onnx cat.jpg --layers 'op:Relu' -o maps.safetensors
      featuremaps extract cifar-resnet photos/*.jpg --layers stage:-1 --format npy -o features/
    """
    from service.cli.extraction import Extraction, run_extraction

    with _pipeline(options, model) as pipeline:
        wanted = Extraction(
            model=_name(model),
            layers=tuple(asked["words"]),
            reduction=_reduction(asked),
            format=asked["kind"],
            compress=asked["compress"],
            size=_sides(asked["size"]),
        )
        asyncio.run(run_extraction(pipeline, wanted, images, output))


@main.command()
@click.argument("model")
@click.argument("layer")
@click.argument("image", type=IMAGE_FILE)
@drawing_options
@click.option("--channels", metavar="0..15,32|top:8", help="Which channels.")
@click.option("--region", metavar="x,y,w,h|pct:x,y,w,h", help="Part of the upright photograph.")
@click.option("--size", metavar="HxW", help="Input size, where it is dynamic.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="`-` is standard output.")
@setting_options(OFFLINE)
def render(
    model: str, layer: str, image: Path, output: Path | None, options: Mapping[str, Any], **asked: Any
) -> None:
    """Draw the feature map of one LAYER of IMAGE.

    \b
    Examples:
      featuremaps render cifar-resnet stem.relu cat.jpg -o map.png
      featuremaps render cifar-resnet stage3.block2.relu cat.jpg --style overlay -o cat.webp
    """
    from service.cli.extraction import Rendering, run_rendering

    with _pipeline(options, model) as pipeline:
        wanted = Rendering(
            model=_name(model),
            layer=layer,
            reduction=_reduction({"pool": "none", "grid": None, "dtype": "native", **asked}),
            drawing=_drawing(asked, output),
            size=_sides(asked["size"]),
        )
        asyncio.run(run_rendering(pipeline, wanted, image.read_bytes(), output))


@main.command()
@click.argument("url")
@click.option("--model", help="Which model.  [default: the first that is ready]")
@click.option(
    "--key",
    metavar="TOKEN",
    envvar=KEY_VARIABLE,
    show_envvar=True,
    help="Sent as a bearer token; as an option other users of this machine can see it.",
)
@click.option(
    "--layers",
    "layer_sets",
    multiple=True,
    default=("stage:0", "stage:-1"),
    help="Layers of one request, as over HTTP; repeatable, each is measured.  [default: stage:0, stage:-1]",
)
@click.option("--image", type=IMAGE_FILE, help="What is sent.  [default: a drawn photograph, JPEG of 100 kB]")
@click.option("--concurrency", default="1,8", show_default=True, help="Clients that wait for their answer.")
@click.option("--rate", metavar="R[,R...]", help="Requests a second, answered or not, instead of clients.")
@click.option("--format", "kind", type=click.Choice(tuple(FORMATS)), default="npy", show_default=True)
@click.option("--accept-encoding", metavar="zstd|gzip", help="Have the answers compressed.")
@click.option("--query", multiple=True, metavar="NAME=VALUE", help="Any further parameter; repeatable.")
@click.option(
    "--identical", is_flag=True, help="Send the same bytes each time: what is asked twice runs once."
)
@click.option("--window", default=3.0, show_default=True, type=SECONDS, help="Seconds of a window.")
@click.option(
    "--tolerance",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="Percent by which the last three windows may differ from their mean.",
)
@click.option("--max-seconds", default=60.0, show_default=True, type=SECONDS, help="For each load at most.")
@click.option("--seconds", type=SECONDS, help="For each load exactly, stable or not.")
@click.option("--pid", type=int, help="The server's process on this machine: tells its memory and CPU time.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write JSON to a file, or `-`.")
def bench(url: str, target: Path | None, **asked: Any) -> None:
    """Measure a running service at URL: answers a second, and where the time of an answer goes.

    Each layer set is measured under each load, in windows until three in a row agree. Those three give
    answers/s, and what began in them the percentiles by nearest rank and the medians apart, all in ms:
    queue; decode, with preprocessing; run; encode, with reduction and compression; network, what is left
    of the client's time: HTTP and the bytes under way, at both ends. Refused and failed requests, RSS
    (before/peak/after) and the server's CPU time an answer are of the whole measurement.

    \b
    Examples:
      featuremaps bench http://127.0.0.1:8000
      featuremaps bench http://127.0.0.1:8000 --layers stem.relu --layers stage:-1 --concurrency 1,4,16
      featuremaps bench http://127.0.0.1:8000 --rate 50,100 --query dtype=float16 --json result.json
      FEATUREMAPS_KEY="$(cat token)" featuremaps bench https://maps.example.org
    """
    try:
        from service.cli.bench import read_bench, run_bench, table
    except ModuleNotFoundError as error:
        if error.name not in ("aiohttp", "psutil"):
            raise
        missing = f"bench needs the package {error.name}: pip install 'featuremaps[bench]'"
        raise ConfigurationError(missing) from error
    if target is not None and not target.parent.is_dir():
        raise ConfigurationError(f"{target} cannot be written: there is no folder {target.parent}")
    found = asyncio.run(run_bench(read_bench(url, asked), _tell))
    if str(target) != "-":
        _print_table(*table(found["rows"]))
    if target is not None:
        _write_json(found, target)


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


def _tell(line: str) -> None:
    """Progress: one line that changes where people look at a terminal."""
    start, end = ("\r\x1b[K", False) if sys.stderr.isatty() else ("", True)
    click.echo(f"{start}{line}", err=True, nl=end)


def _write_json(content: Mapping[str, Any], target: Path) -> None:
    try:
        with click.open_file(str(target), "w") as file:
            file.write(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}") from error


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


def _reduction(asked: Mapping[str, Any]) -> Reduction:
    """As over HTTP.

    Raises:
        InvalidParameter
    """
    return Reduction(
        channels=read_channels(asked["channels"]) if asked["channels"] else None,
        region=read_region(asked["region"]) if asked["region"] else None,
        pool=asked["pool"],
        grid=read_grid(asked["grid"]) if asked["grid"] else None,
        dtype=asked["dtype"],
    )


def _drawing(asked: Mapping[str, Any], output: Path | None) -> Drawing:
    """The format is that of the file's ending where nothing else is said."""
    given = {f.name: asked[f.name] for f in fields(Drawing) if f.name in asked}
    ending = output.suffix.removeprefix(".").lower() if output else ""
    by_ending = {"png": "png", "webp": "webp", "jpg": "jpeg", "jpeg": "jpeg"}.get(ending)
    if ending and by_ending is None and asked["kind"] is None:
        raise ConfigurationError(f"{output} ends as no picture does: say which with --format")
    return Drawing(**{**given, "format": asked["kind"] or by_ending or "png"})


def _name(model: str) -> str:
    return Path(model).stem if model.endswith(".onnx") else model


def _sides(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if not re.fullmatch(SIDES, size):
        raise click.BadParameter(f"{size!r} is not HxW, such as 224x224", param_hint="--size")
    height, width = map(int, size.split("x"))
    return height, width


def _pair(pair: tuple[Any, Any] | None) -> str:
    if pair is None:
        return "?"
    y, x = (f"{float(value):g}" for value in pair)
    return y if x == y else f"{y}x{x}"


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
