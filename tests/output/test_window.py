"""From a region of the photograph to cells: never off by half a cell."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidParameter, NotCombinable
from service.output.window import find_window
from service.syntax import Region
from service.values import Layer, Placement, Window
from tests.engine.test_selection import layer as any_layer


def layer(cells: int, reduction: int, centre: Fraction) -> Layer:
    return replace(
        any_layer("a", 0, reduction=reduction), shape=(1, 4, cells, cells), centre=(centre, centre)
    )


def plain(side: int) -> Placement:
    """The photograph is the tensor."""
    return Placement((side, side), (1.0, 1.0), (0.0, 0.0))


CENTRED = layer(8, 4, Fraction(3, 2))


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (Region(0, 0, 32, 32), Window(0, 0, 8, 8)),
        (Region(0, 0, 4, 4), Window(0, 0, 1, 1)),
        (Region(4, 8, 8, 4), Window(2, 1, 1, 2)),
        (Region(2, 2, 4, 4), Window(0, 0, 1, 1)),
        (Region(2.1, 2.1, 4, 4), Window(1, 1, 1, 1)),
        (Region(0.5, 0.5, 1, 1), Window(0, 0, 1, 1)),
        (Region(28, 28, 100, 100), Window(7, 7, 1, 1)),
        (Region(-10, -10, 14, 14), Window(0, 0, 1, 1)),
        (Region(0, 0, 50, 100, True), Window(0, 0, 8, 4)),
        (Region(50, 50, 50, 50, True), Window(4, 4, 4, 4)),
    ],
)
def test_the_cells_whose_centre_lies_inside_are_taken(region: Region, expected: Window) -> None:
    assert find_window(region, CENTRED, plain(32), (32, 32)) == expected


@given(st.integers(0, 7), st.integers(0, 7), st.integers(1, 4), st.integers(1, 5), st.integers(-3, 3))
def test_a_box_around_one_centre_gives_just_that_cell(
    y: int, x: int, reduction: int, zoom: int, shift: int
) -> None:
    """However the photograph was resized and cropped on its way into the tensor."""
    side = 8 * reduction
    centre = Fraction(reduction - 1, 2)
    placement = Placement((side * zoom, side * zoom), (1 / zoom, 1 / zoom), (shift / zoom, shift / zoom))
    middle = [((float(centre) + 0.5 + u * reduction) - shift / zoom) * zoom for u in (y, x)]
    if not all(1 < m < side * zoom - 1 for m in middle):
        return
    region = Region(middle[1] - 0.25, middle[0] - 0.25, 0.5, 0.5)
    assert find_window(region, layer(8, reduction, centre), placement, (side, side)) == Window(y, x, 1, 1)


@given(st.floats(0, 31), st.floats(0, 31), st.floats(0.1, 40), st.floats(0.1, 40))
def test_exactly_the_centres_inside_are_taken(x: float, y: float, width: float, height: float) -> None:
    window = find_window(Region(x, y, width, height), CENTRED, plain(32), (32, 32))
    for start, length, found, count in (
        (y, height, window.y, window.height),
        (x, width, window.x, window.width),
    ):
        end = min(start + length, 32)
        inside = [u for u in range(8) if start <= 2 + 4 * u < end]
        assert inside == list(range(found, found + count)) or (not inside and count == 1)


@given(st.integers(1, 30))
def test_neighbouring_regions_share_no_cell_and_leave_none_out(cut: int) -> None:
    left = find_window(Region(0, 0, cut, 32), CENTRED, plain(32), (32, 32))
    right = find_window(Region(cut, 0, 32 - cut, 32), CENTRED, plain(32), (32, 32))
    if 2 < cut <= 30:
        assert left.x + left.width == right.x
        assert right.x + right.width == 8


@pytest.mark.parametrize(
    "region", [Region(32, 0, 5, 5), Region(0, 40, 5, 5), Region(-9, 0, 5, 5), Region(101, 0, 5, 5, True)]
)
def test_a_region_wholly_outside_is_refused(region: Region) -> None:
    with pytest.raises(InvalidParameter, match="outside"):
        find_window(region, CENTRED, plain(32), (32, 32))


def test_a_region_that_the_crop_cut_away_is_refused() -> None:
    placement = Placement((32, 64), (1.0, 1.0), (0.0, -16.0))
    with pytest.raises(InvalidParameter, match="what the network saw"):
        find_window(Region(0, 0, 10, 32), CENTRED, placement, (32, 32))


@pytest.mark.parametrize(
    "unknown", [{"centre": None}, {"reduction": None}, {"reduction": (Fraction(4), Fraction(0))}]
)
def test_a_layer_whose_cells_have_no_place_of_their_own_is_refused(unknown: dict[str, Any]) -> None:
    with pytest.raises(NotCombinable, match="no known place"):
        find_window(Region(0, 0, 1, 1), replace(CENTRED, **unknown), plain(32), (32, 32))
