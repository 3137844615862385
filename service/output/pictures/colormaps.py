"""Colormaps by name, as tables of colours; cmap sees no name that its own catalogue does not hold."""

import difflib
import re
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from cmap import Colormap

from service.errors import InvalidParameter
from service.output.pictures.scales import LEVELS

# Perceptually even from black through red to pale yellow (https://bids.github.io/colormap).
UNSIGNED = "inferno"
# Its centre is (247, 247, 247) exactly, no tint either way, and red and blue stay apart for the
# colour-blind (https://colorbrewer2.org). vlag's and berlin's centres are tinted.
SIGNED = "colorbrewer:RdBu_r"
# Where there is no cell or no number: between tiles, and NaN.
NOTHING = (64, 64, 64)
_NEARLY_BLACK = 8
_NAME = re.compile(r"[A-Za-z0-9_:.-]{1,64}", re.ASCII)
_SUGGESTIONS = 5


def find_colormap(name: str) -> str:
    """The catalogue's own name of a colormap, as `bids:inferno` for `inferno`; `_r` reverses any.

    Raises:
        InvalidParameter: there is none of that name; `suggestions` holds near ones.
    """
    catalog = Colormap.catalog()
    if _NAME.fullmatch(name):
        forward = name.removesuffix("_r")
        try:
            return catalog.resolve(forward) + name[len(forward) :]
        except KeyError:
            pass
    near = difflib.get_close_matches(name[:64].removesuffix("_r"), list(catalog), n=_SUGGESTIONS)
    hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
    raise InvalidParameter(
        f"no colormap {name[:64]!r}{hint} (names are those of https://cmap-docs.readthedocs.io)",
        parameter="colormap",
        suggestions=near,
    )


@lru_cache(maxsize=64)
def palette(name: str) -> npt.NDArray[np.uint8]:
    """Colours (256, 3) uint8, read-only: 255 levels, evenly from the map's start to its end, then `NOTHING`.

    A start that is nearly black becomes black (inferno's is (0, 0, 4)), so that a dead channel is
    black and not almost. Transparency is left out.

    Args:
        name: what `find_colormap` returned.
    """
    # Calling a colormap looks up a table of N colours first; its own table may be shorter than N.
    colors = Colormap(name)(np.linspace(0.0, 1.0, LEVELS), N=LEVELS)[:, :3]
    colors = np.rint(colors * 255).astype(np.uint8)
    if colors[0].max() <= _NEARLY_BLACK:
        colors[0] = 0
    table = np.vstack([colors, np.array([NOTHING], np.uint8)])
    table.flags.writeable = False
    return table
