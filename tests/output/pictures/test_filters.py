"""Drawn weights: one scale for all filters, whatever a broken one holds."""

import numpy as np
import pytest

from service.errors import NotDrawable
from service.output.pictures.filters import draw_filters
from service.parameters import PictureFormat
from tests.output.pictures.maps import opened

BRIGHTEST, MIDDLE, NOTHING = 254, 127, 255


def drawn(weights: np.ndarray, *, colored: bool) -> np.ndarray:
    """Levels of four filters of one weight, two in a row, with their gaps between them."""
    image = opened(draw_filters(weights.astype(np.float32), colored=colored, format="png")[0])
    pixels, side = np.asarray(image), (image.width - 1) // 2
    return pixels[:: side + 1, :: side + 1].reshape(4, -1)


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([1, -1, 0, 0.5], [BRIGHTEST, 0, MIDDLE, 190]),
        ([0, 0, 0, 0], [MIDDLE] * 4),
        ([1, np.nan, 0, -1], [BRIGHTEST, NOTHING, MIDDLE, 0]),
        ([1, np.inf, -np.inf, -1], [BRIGHTEST, BRIGHTEST, 0, 0]),
        ([np.nan] * 4, [NOTHING] * 4),
    ],
)
def test_a_weight_has_its_level_whatever_others_are(values: list[float], levels: list[int]) -> None:
    weights = np.array(values).reshape(4, 1, 1, 1)
    assert drawn(weights, colored=False).ravel().tolist() == levels
    assert drawn(weights.repeat(3, axis=1), colored=True).tolist() == [[level] * 3 for level in levels]


@pytest.mark.parametrize(("shape", "format"), [((1026, 1, 1, 1024), "webp"), ((40000, 1, 30, 30), "png")])
def test_filters_too_large_for_a_picture_are_refused(shape: tuple[int, ...], format: PictureFormat) -> None:  # noqa: A002
    """The first as in front of networks that hear."""
    with pytest.raises(NotDrawable, match="pixels"):
        draw_filters(np.zeros(shape, np.float32), colored=False, format=format)
