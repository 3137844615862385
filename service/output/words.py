"""From the words of a request to a reduction: `0..15,32`, `top:8`, `pct:x,y,w,h`, `HxW`. Pure."""

import math
import re

from service.errors import InvalidParameter
from service.values import Channels, Region

MAX_CHANNELS_LISTED = 65536
RANGE = re.compile(r"([0-9]{1,6})(?:\.\.([0-9]{1,6}))?")
TOP = re.compile(r"top:([1-9][0-9]{0,5})")
GRID = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")
PERCENT = "pct:"
DECIMAL = re.compile(r"[+-]?([0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9})")


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
        InvalidParameter: not four finite numbers, or nothing of it lies in the photograph's quadrant.
    """
    percent = text.startswith(PERCENT)
    try:
        x, y, width, height = (_decimal(part) for part in text.removeprefix(PERCENT).split(","))
    except ValueError as error:
        raise _bad_region(text, "write x,y,w,h in pixels or pct:x,y,w,h in percent") from error
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise _bad_region(text, "width and height are above zero")
    return Region(x, y, width, height, percent)


def read_grid(text: str) -> tuple[int, int]:
    """`HxW`, rows and columns of cells.

    Raises:
        InvalidParameter
    """
    if not (match := GRID.fullmatch(text)):
        raise InvalidParameter(
            f"grid={text[:80]!r} is not understood: write HxW, such as 7x7", parameter="grid"
        )
    return int(match[1]), int(match[2])


def _decimal(text: str) -> float:
    """Python's own float() takes underscores and words."""
    if not DECIMAL.fullmatch(text):
        raise ValueError(text)
    return float(text)


def _bad_region(text: str, hint: str) -> InvalidParameter:
    return InvalidParameter(f"region={text[:80]!r} is not understood: {hint}", parameter="region")
