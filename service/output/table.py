"""The table of array formats, and how one is found from `format=` or `Accept`."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from service.errors import InvalidParameter, NotAcceptable
from service.output.arrays import Metadata, Npy, Npz, Safetensors
from service.output.arrow import Arrow
from service.parameters import Compress
from service.values import Array, Chunk


class ArrayFormat(Protocol):
    """One way to write feature maps; one more is one class and one line in `FORMATS`."""

    name: str
    media_type: str
    extension: str
    carries_metadata: bool

    @property
    def available(self) -> bool:
        """Whether what it needs is installed."""

    def check(self, layers: Sequence[str], compress: Compress) -> None:
        """Refuse, before anything runs, what the format cannot carry."""

    def encode(
        self, arrays: Mapping[str, Array], metadata: Metadata, compress: Compress
    ) -> tuple[Chunk, ...]:
        """The answer's bytes."""


# In the order that decides ties.
FORMATS: dict[str, ArrayFormat] = {f.name: f for f in (Npz(), Safetensors(), Npy(), Arrow())}
PROBLEM = "application/problem+json"


def choose_format(name: str | None, accept: str | None) -> ArrayFormat:
    """The format asked for by name, else the best match of an Accept header (RFC 9110, 12.5.1).

    Raises:
        InvalidParameter: no such format.
        NotAcceptable: `accept` names none of ours.
    """
    if name is not None:
        if name not in FORMATS:
            raise InvalidParameter(
                f"format={name!r} is not known; there are {', '.join(FORMATS)}", parameter="format"
            )
        return _installed(FORMATS[name])
    ranges = _ranges(accept or "")
    if not ranges:
        return next(iter(FORMATS.values()))
    offered = [f for f in FORMATS.values() if f.available]
    best = max(offered, key=lambda f: _quality(f.media_type, ranges))
    if _quality(best.media_type, ranges) <= 0:
        types = ", ".join(f.media_type for f in offered)
        raise NotAcceptable(f"Accept names none of {types}; format= chooses one by name")
    return best


def _installed(kind: ArrayFormat) -> ArrayFormat:
    if not kind.available:
        raise InvalidParameter(
            f"format={kind.name} is not installed here: the operator adds 'featuremaps[{kind.name}]'",
            parameter="format",
        )
    return kind


def _ranges(accept: str) -> dict[str, float]:
    """Media ranges with their quality; who only adds problem+json still takes anything."""
    ranges = {}
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        media = "*/*" if media == "*" else media  # as old Java clients write it
        if media and media != PROBLEM:
            ranges[media] = next((_q(p) for p in parameters if p.startswith("q=")), 1.0)
    return ranges


def _q(parameter: str) -> float:
    try:
        return min(max(float(parameter[2:]), 0.0), 1.0)
    except ValueError:
        return 0.0


def _quality(media_type: str, ranges: dict[str, float]) -> float:
    """The most specific range decides."""
    for candidate in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        if candidate in ranges:
            return ranges[candidate]
    return 0.0
