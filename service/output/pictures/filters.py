"""The weights of a convolution as a mosaic: what each filter looks for."""

import numpy as np

from service.output.pictures.checks import refuse_size
from service.output.pictures.colormaps import SIGNED, palette
from service.output.pictures.files import FILES, Canvas
from service.output.pictures.mosaic import assemble, lay_out
from service.output.pictures.scales import levels
from service.parameters import Drawing, PictureFormat
from service.values import Array

COLORS = 3


def draw_filters(weights: Array, *, colored: bool, format: PictureFormat) -> tuple[bytes, str, str]:  # noqa: A002
    """One tile a filter, all at one scale with zero in the middle.

    `weights` (out, in, kh, kw) of any real dtype. With `colored` the three input channels are red,
    green and blue, zero being middle gray; else a filter is its mean over its input channels, in
    signed colours. An infinite weight saturates, and one that is no number has the colour of the gaps.
    Returns the file's bytes, media type and ending.

    Raises:
        NotDrawable: the picture would be too large.
    """
    mosaic = lay_out(len(weights), (weights.shape[2], weights.shape[3]), Drawing())
    refuse_size("the filters", mosaic.size, format)
    values = weights.astype(np.float64) if colored else weights.mean(axis=1, keepdims=True, dtype=np.float64)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
    shown = levels(np.clip((values / largest + 1) / 2, 0.0, 1.0))
    planes = [assemble(shown[:, channel], mosaic) for channel in range(shown.shape[1])]
    canvas = (
        Canvas(np.stack(planes, axis=-1), None, enlarged=True)
        if colored
        else Canvas(planes[0], palette(SIGNED), enlarged=True)
    )
    file = FILES[format]
    words = {"vmin": f"{-largest:.6g}", "vmax": f"{largest:.6g}", "style": "filters"}
    return file.encode(canvas, words), file.media_type, file.extension
