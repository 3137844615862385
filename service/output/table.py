"""The table of array formats."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from service.errors import InvalidParameter
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


def find_format(name: str | None) -> ArrayFormat:
    """Find a format by its name; without a name the first one.

    Raises:
        InvalidParameter: no such format, or it is not installed.
    """
    if name is None:
        return next(iter(FORMATS.values()))
    if name not in FORMATS:
        raise InvalidParameter(
            f"format={name!r} is not known; there are {', '.join(FORMATS)}", parameter="format"
        )
    if not FORMATS[name].available:
        raise InvalidParameter(
            f"format={name} is not installed here: the operator adds 'featuremaps[{name}]'",
            parameter="format",
        )
    return FORMATS[name]
