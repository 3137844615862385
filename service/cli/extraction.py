"""`featuremaps extract` and `render`: the service's own pipeline without the door."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from service.errors import ConfigurationError
from service.output.table import FORMATS, choose_format
from service.pipeline.answers import ArraysAnswer
from service.pipeline.prepare import ImagesRequest
from service.pipeline.views import PictureAnswer
from service.pipeline.work import Pipeline
from service.values import Compress, Drawing, Payload, Reduction


@dataclass(frozen=True)
class Extraction:
    """What is wanted of every image."""

    model: str
    layers: tuple[str, ...]
    reduction: Reduction
    format: str | None
    compress: Compress
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Rendering:
    """What is wanted of one image."""

    model: str
    layer: str
    reduction: Reduction
    drawing: Drawing
    size: tuple[int, int] | None


async def run_rendering(pipeline: Pipeline, wanted: Rendering, image: bytes, output: Path | None) -> None:
    """Write one picture.

    Raises:
        ServiceError
    """
    request = ImagesRequest(
        model=wanted.model,
        images=(image,),
        answer=PictureAnswer(wanted.drawing),
        layers=(wanted.layer,),
        reduction=wanted.reduction,
        size=wanted.size,
        timeout_s=pipeline.limits.timeout_s,
    )
    payload = await pipeline.answer(request)
    _write(payload, output or Path(payload.file_name))


async def run_extraction(
    pipeline: Pipeline, wanted: Extraction, images: Sequence[Path], output: Path | None
) -> None:
    """Write one file an image.

    Raises:
        ServiceError: the first refusal; files written before it stay.
    """
    targets = _targets(images, output, wanted.format)
    quiet = len(images) == 1 or not sys.stderr.isatty()
    with click.progressbar(images, label="extract", file=sys.stderr, hidden=quiet) as shown:
        for image, (target, kind) in zip(shown, targets, strict=True):
            _write(await pipeline.answer(_request(pipeline, wanted, image, kind)), target)


def _request(pipeline: Pipeline, wanted: Extraction, image: Path, kind: str) -> ImagesRequest:
    return ImagesRequest(
        model=wanted.model,
        images=(image.read_bytes(),),
        answer=ArraysAnswer(choose_format(kind, None).name, wanted.compress),
        layers=wanted.layers,
        reduction=wanted.reduction,
        size=wanted.size,
        timeout_s=pipeline.limits.timeout_s,
    )


def _targets(images: Sequence[Path], output: Path | None, kind: str | None) -> list[tuple[Path, str]]:
    """Where each image's maps go, and in which format: the file's ending decides where nothing else does."""
    if str(output) == "-":
        if len(images) > 1:
            raise ConfigurationError(f"`-` takes the maps of one image, and {len(images)} need a folder")
        return [(Path("-"), kind or "npz")]
    if len(images) == 1 and output is not None and output.suffix and not output.is_dir():
        chosen = kind or _format_of(output)
        return [(output, chosen)]
    chosen = kind or "npz"
    folder = output or Path()
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file, and {len(images)} images need a folder")
    folder.mkdir(parents=True, exist_ok=True)
    ending = FORMATS[chosen].extension
    targets = [folder / f"{image.stem}.{ending}" for image in images]
    twice = next((t for t in targets if targets.count(t) > 1), None)
    if twice:
        raise ConfigurationError(f"two images would be written to {twice}: give them different names")
    return [(target, chosen) for target in targets]


def _format_of(output: Path) -> str:
    ending = output.suffix.removeprefix(".")
    for name, kind in FORMATS.items():
        if kind.extension == ending:
            return name
    raise ConfigurationError(f"{output} ends as no format does: say which with --format")


def _write(payload: Payload, target: Path) -> None:
    if str(target) == "-":
        for chunk in payload.chunks:
            sys.stdout.buffer.write(chunk)
        return
    try:
        with target.open("wb") as file:
            for chunk in payload.chunks:
                file.write(chunk)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}") from error
    click.echo(f"{target}  {payload.size:,} bytes", err=True)
