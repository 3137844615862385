"""`featuremaps extract` and `render`: the service's own pipeline without the door."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from service.errors import ConfigurationError
from service.output.pictures.files import FILES
from service.output.table import FORMATS, find_format
from service.pipeline.answers import ArraysAnswer
from service.pipeline.prepare import ImagesRequest
from service.pipeline.request import Answer
from service.pipeline.views import PictureAnswer
from service.pipeline.work import Pipeline
from service.values import Payload
from service.web.queries import FeaturesQuery, RenderQuery, drawing, reduction


async def run_rendering(
    pipeline: Pipeline, model: str, asked: RenderQuery, image: bytes, output: Path | None
) -> None:
    """Write one picture.

    Raises:
        ServiceError
    """
    answer = PictureAnswer(drawing(asked))
    payload = await pipeline.answer(_request(pipeline, model, asked, image, answer))
    _write(payload, output or Path(payload.file_name))


async def run_extraction(
    pipeline: Pipeline, model: str, asked: FeaturesQuery, images: Sequence[Path], output: Path | None
) -> None:
    """Write one file an image.

    Raises:
        ServiceError: the first refusal; files written before it stay.
    """
    targets = _targets(images, output, asked.format)
    quiet = len(images) == 1 or not sys.stderr.isatty()
    with click.progressbar(images, label="extract", file=sys.stderr, hidden=quiet) as shown:
        for image, (target, kind) in zip(shown, targets, strict=True):
            answer = ArraysAnswer(find_format(kind).name, asked.compress)
            _write(
                await pipeline.answer(_request(pipeline, model, asked, image.read_bytes(), answer)), target
            )


def picture_format(output: Path | None) -> str:
    """The picture format that a file's name ends with; png where it has no ending.

    Raises:
        ConfigurationError
    """
    if output is None or not output.suffix:
        return "png"
    endings = {file.extension: name for name, file in FILES.items()}
    return _by_ending(output, endings | {name: name for name in FILES})


def _request(
    pipeline: Pipeline, model: str, asked: FeaturesQuery | RenderQuery, image: bytes, answer: Answer
) -> ImagesRequest:
    return ImagesRequest(
        model=model,
        images=(image,),
        answer=answer,
        layers=asked.layers if isinstance(asked, FeaturesQuery) else (asked.layer or "",),
        reduction=reduction(asked),
        size=asked.size,
        timeout_s=pipeline.limits.timeout_s,
    )


def _targets(images: Sequence[Path], output: Path | None, kind: str | None) -> list[tuple[Path, str]]:
    """Where each image's maps go, and in which format: the file's ending decides where nothing else does."""
    if str(output) == "-":
        if len(images) > 1:
            raise ConfigurationError(f"`-` takes the maps of one image, and {len(images)} need a folder")
        return [(Path("-"), kind or "npz")]
    if len(images) == 1 and output is not None and output.suffix and not output.is_dir():
        chosen = kind or _by_ending(output, {x.extension: name for name, x in FORMATS.items()})
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


def _by_ending(output: Path, endings: Mapping[str, str]) -> str:
    ending = output.suffix.removeprefix(".").lower()
    if ending not in endings:
        raise ConfigurationError(f"{output} ends as no format does: say which with --format")
    return endings[ending]


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
