"""A cell's heat lies on the photograph where the cell looks."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import NotDrawable
from service.output.pictures import Backdrop, draw
from service.parameters import Drawing
from service.values import FeatureMap, Picture, Placement, Window
from tests.output.pictures.maps import feature_map, opened

# How a photograph (H, W) comes into an input of 64 x 64: `t = p * scale + offset`, (y, x).
PLACEMENTS = {
    "same": Placement((64, 64), (1.0, 1.0), (0.0, 0.0)),
    "crop": Placement((100, 150), (72 / 100, 108 / 150), (-4.0, -22.0)),
    "stretch": Placement((200, 90), (64 / 200, 64 / 90), (0.0, 0.0)),
    "letterbox": Placement((50, 100), (0.64, 0.64), (16.0, 0.0)),
}
GEOMETRIES = [(1, 0.0), (2, 0.5), (2, 0.0), (4, 1.5), (4, 3.0), (8, 3.5), (8, 0.0), (8, 7.0)]


def backdrop(placement: Placement, gray: int = 0) -> Backdrop:
    return Backdrop(Picture.of(np.full((*placement.photo, 3), gray, np.uint8), "image/png"), placement)


def heat_of(
    cells: FeatureMap, behind: Backdrop, window: Window | None = None, weight: float = 0.0
) -> np.ndarray:
    drawing = Drawing(style="overlay", colormap="matlab:gray", image_weight=weight)
    return np.asarray(opened(draw(cells, drawing, window=window, backdrop=behind).body)).astype(int)


def one_hot(count: int, y: int, x: int, reduction: int, centre: float) -> FeatureMap:
    values = np.zeros((1, count, count), np.float32)
    values[0, y, x] = 1
    return feature_map(values, reduction=reduction, centre=centre)


def centre_in_photo(
    placement: Placement, cell: tuple[int, int], reduction: int, centre: float
) -> list[float]:
    """Edge coordinates of the middle of the pixel that the cell is centred on."""
    return [
        (cell[axis] * reduction + centre + 0.5 - placement.offset[axis]) / placement.scale[axis]
        for axis in (0, 1)
    ]


@pytest.mark.parametrize(("reduction", "centre"), GEOMETRIES)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_the_brightest_pixel_is_at_the_centre_of_the_hot_cell(
    name: str, reduction: int, centre: float
) -> None:
    placement, count = PLACEMENTS[name], 64 // reduction
    middle = count // 2
    cell = (middle, middle - 1) if count > 1 else (0, 0)
    heat = heat_of(one_hot(count, *cell, reduction, centre), backdrop(placement))[..., 0]
    brightest = np.argwhere(heat == heat.max()).mean(axis=0) + 0.5
    assert np.abs(brightest - centre_in_photo(placement, cell, reduction, centre)).max() <= 1


def test_a_window_moves_the_cells_with_it() -> None:
    placement, whole = PLACEMENTS["crop"], one_hot(16, 7, 9, 4, 1.5)
    cut = feature_map(whole.values[0][:, 5:11, 6:12], reduction=4, centre=1.5)
    complete = heat_of(whole, backdrop(placement, gray=90))
    part = heat_of(cut, backdrop(placement, gray=90), Window(5, 6, 6, 6))
    hot = complete[..., 0] > 0
    inside = (part != 90).any(axis=-1)
    assert np.array_equal(part[inside], complete[inside])
    assert inside[(complete == 255).all(axis=-1)].all()
    assert inside.sum() < hot.sum()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(PLACEMENTS)), st.sampled_from(GEOMETRIES), st.integers(0, 2**32))
def test_heat_is_bilinear_between_cell_centres(name: str, geometry: tuple[int, float], seed: int) -> None:
    placement, (reduction, centre) = PLACEMENTS[name], geometry
    count = 64 // reduction
    values = np.random.default_rng(seed).uniform(size=(1, count, count)).astype(np.float32)
    heat = heat_of(feature_map(values, reduction=reduction, centre=centre), backdrop(placement))[..., 0]
    levels = values[0] / values.max() * 254
    for y, x in np.random.default_rng(seed).integers(0, placement.photo, (20, 2)):
        u = [
            ((p + 0.5) * placement.scale[a] + placement.offset[a] - 0.5 - centre) / reduction
            for a, p in enumerate((y, x))
        ]
        if min(u) < -0.5 or max(u) > count - 0.5:
            assert heat[y, x] == 0
            continue
        expected = bilinear(levels, *np.clip(u, 0, count - 1))
        assert abs(heat[y, x] - expected * 255 / 254) <= 1.01


def bilinear(values: np.ndarray, y: float, x: float) -> float:
    rows, columns = (
        np.maximum(1 - np.abs(np.arange(n) - u), 0) for n, u in zip(values.shape, (y, x), strict=True)
    )
    return float(rows @ values @ columns)


def test_the_cropped_away_parts_of_a_photograph_stay_as_they_are() -> None:
    placement = PLACEMENTS["crop"]
    drawn = heat_of(feature_map(np.ones((1, 16, 16)), reduction=4, centre=1.5), backdrop(placement, 77))
    assert (drawn[:, :30] == 77).all()
    assert (drawn[10:90, 40:110] == 255).all()


def test_a_map_that_lies_beside_the_photograph_leaves_it_alone() -> None:
    cells = feature_map(np.ones((1, 2, 2)), reduction=4, centre=1.5)
    drawn = heat_of(cells, backdrop(PLACEMENTS["same"], 77), Window(100, 100, 2, 2))
    assert (drawn == 77).all()


def test_drawing_leaves_nothing_with_the_photograph_which_may_be_kept_for_long() -> None:
    behind = backdrop(PLACEMENTS["same"])
    heat_of(one_hot(16, 7, 9, 4, 1.5), behind)
    assert set(vars(behind.picture)) == {field.name for field in fields(Picture)}


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_the_photograph_has_the_weight_that_was_asked_for(weight: float) -> None:
    values = np.array([[[0.0, 1.0]] * 2])
    placement = Placement((2, 2), (1.0, 1.0), (0.0, 0.0))
    drawn = heat_of(feature_map(values, reduction=1, centre=0), backdrop(placement, 100), weight=weight)
    assert drawn[0, :, 0].tolist() == [round(100 * weight), round(100 * weight + 255 * (1 - weight))]


def test_where_there_is_no_number_there_is_no_heat() -> None:
    values = np.ones((1, 16, 16))
    values[0, 8, 8] = np.nan
    drawn = heat_of(feature_map(values, reduction=4, centre=1.5), backdrop(PLACEMENTS["same"], 77))
    assert (drawn[33:35, 33:35] == 77).all()
    assert (drawn[20, 20] == 255).all()


def test_a_large_photograph_is_shrunk_and_the_cells_with_it() -> None:
    placement = Placement((1500, 3000), (64 / 1500, 64 / 3000), (0.0, 0.0))
    heat = heat_of(one_hot(16, 3, 12, 4, 1.5), backdrop(placement))[..., 0]
    assert heat.shape == (512, 1024)
    brightest = np.argwhere(heat == heat.max()).mean(axis=0) + 0.5
    expected = np.array(centre_in_photo(placement, (3, 12), 4, 1.5)) * [512 / 1500, 1024 / 3000]
    assert np.abs(brightest - expected).max() <= 1


def test_a_photograph_is_shrunk_by_area() -> None:
    stripes = np.zeros((10, 2048, 3), np.uint8)
    stripes[:, ::2] = 200
    behind = Backdrop(Picture.of(stripes, "image/png"), Placement((10, 2048), (1.0, 1.0), (0.0, 0.0)))
    drawn = heat_of(one_hot(4, 1, 1, 4, 0.0), behind, weight=1.0)
    assert drawn.shape == (5, 1024, 3)
    assert (drawn == 100).all()


def test_an_overlay_without_a_photograph_is_refused() -> None:
    with pytest.raises(NotDrawable, match="photograph"):
        draw(one_hot(4, 1, 1, 4, 0.0), Drawing(style="overlay"))


def test_eigencam_lies_on_the_photograph_where_the_geometry_is_known() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 4))
    behind = backdrop(PLACEMENTS["stretch"])
    placed = draw(feature_map(values, reduction=16), Drawing(style="eigencam"), backdrop=behind)
    assert opened(placed.body).size == (90, 200)
    alone = draw(feature_map(values, reduction=None), Drawing(style="eigencam"), backdrop=behind)
    assert opened(alone.body).size == (1024, 1024)
