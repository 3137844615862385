"""Values that requests write as text: `0..15,32`, `top:8`, `pct:x,y,w,h`, `HxW`."""

import re
from dataclasses import dataclass

from service.errors import InvalidParameter

MAX_CHANNELS_LISTED = 65536
RANGE = re.compile(r"([0-9]{1,6})(?:\.\.([0-9]{1,6}))?")
TOP = re.compile(r"top:([1-9][0-9]{0,5})")
GRID = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")
SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
PERCENT = "pct:"
SIDES_OF_REGION = 4
DECIMAL = re.compile(r"[+-]?([0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9})")
CHANNELS_SYNTAX = f"^({TOP.pattern}|{RANGE.pattern}(,{RANGE.pattern})*)$"
REGION_SYNTAX = f"^({PERCENT})?({DECIMAL.pattern})(,({DECIMAL.pattern})){{3}}$"


@dataclass(frozen=True)
class Channels:
    """Which channels: `indices` as listed, or the `top` ones of each image by mean absolute activation."""

    indices: tuple[int, ...] = ()
    top: int | None = None


@dataclass(frozen=True)
class Region:
    """A part of the upright photograph, in pixels or in percent of its sides."""

    x: float
    y: float
    width: float
    height: float
    percent: bool = False


def read_channels(text: str) -> Channels:
    """`0..15,32` (inclusive, in the order given, each once) or `top:8`.

    Raises:
        InvalidParameter
    """
    if match := TOP.fullmatch(text):
        return Channels(top=int(match[1]))
    indices: dict[int, None] = {}
    listed = 0  # Also what is listed again: it takes as long.
    for part in text.split(","):
        match = RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        listed += last - first + 1
        if first > last or listed > MAX_CHANNELS_LISTED:
            raise InvalidParameter(
                f"channels={text[:80]!r} is not understood: write 0..15,32 or top:8, at most "
                f"{MAX_CHANNELS_LISTED} channels, each counted as often as it is written",
                parameter="channels",
            )
        indices |= dict.fromkeys(range(first, last + 1))
    return Channels(tuple(indices))


def read_region(text: str) -> Region:
    """`x,y,w,h` in pixels or `pct:x,y,w,h` in percent of the upright photograph (IIIF Image API 3.0).

    Raises:
        InvalidParameter: not four numbers, or a width or height of zero.
    """
    numbers = text.removeprefix(PERCENT).split(",")
    # Python's own float() takes underscores and words.
    if len(numbers) != SIDES_OF_REGION or not all(map(DECIMAL.fullmatch, numbers)):
        raise _bad_region(text, "write x,y,w,h in pixels or pct:x,y,w,h in percent")
    x, y, width, height = map(float, numbers)
    if width <= 0 or height <= 0:
        raise _bad_region(text, "width and height are above zero")
    return Region(x, y, width, height, text.startswith(PERCENT))


def read_grid(text: str) -> tuple[int, int]:
    """`HxW`, rows and columns of cells.

    Raises:
        InvalidParameter
    """
    return _read_sides("grid", GRID, text, "7x7")


def read_size(text: str) -> tuple[int, int]:
    """`HxW`, pixels of a network's input.

    Raises:
        InvalidParameter
    """
    return _read_sides("size", SIZE, text, "224x224")


def _read_sides(name: str, syntax: re.Pattern[str], text: str, example: str) -> tuple[int, int]:
    if not (match := syntax.fullmatch(text)):
        raise InvalidParameter(
            f"{name}={text[:80]!r} is not understood: write HxW, such as {example}", parameter=name
        )
    return int(match[1]), int(match[2])


def _bad_region(text: str, hint: str) -> InvalidParameter:
    return InvalidParameter(f"region={text[:80]!r} is not understood: {hint}", parameter="region")
