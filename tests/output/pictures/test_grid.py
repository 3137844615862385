"""Mosaics: where tiles lie, what is black, what is neutral, what saturates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.output.pictures import draw
from service.parameters import Drawing
from tests.output.pictures.maps import BLACK, NEUTRAL, NOTHING, colors, feature_map, floats, indices, opened

GAP = 255
MAPS = np.random.default_rng(0).gamma(1.0, 2.0, (5, 3, 4)).astype(np.float32)


def tile(picture: np.ndarray, channel: int, columns: int, height: int, width: int) -> np.ndarray:
    top, left = channel // columns * (height + 1), channel % columns * (width + 1)
    return picture[top : top + height, left : left + width]


def test_a_tiny_map_is_drawn_as_written_by_hand() -> None:
    maps = floats([[0, 1], [2, 4]], [[4, 0], [0, 0]], [[0, 0], [0, 0]])
    assert indices(maps).tolist() == [
        [0, 64, GAP, 254, 0],
        [127, 254, GAP, 0, 0],
        [GAP, GAP, GAP, GAP, GAP],
        [0, 0, GAP, GAP, GAP],
        [0, 0, GAP, GAP, GAP],
    ]


def test_a_signed_map_is_drawn_as_written_by_hand() -> None:
    assert indices(floats([[-4, -2, 0, 1, 2]])).tolist() == [[0, 64, 127, 159, 190]]


def test_channels_lie_row_major_in_about_a_square() -> None:
    picture = indices(MAPS)
    assert picture.shape == (2 * 4 - 1, 3 * 5 - 1)
    for channel, values in enumerate(MAPS):
        assert np.array_equal(tile(picture, channel, 3, 3, 4), np.rint(254 * (values / MAPS.max())))


@given(st.integers(1, 9), st.integers(1, 4))
def test_columns_and_scale_decide_the_size(columns: int, scale: int) -> None:
    used = min(columns, 5)
    rows = -(-5 // used)
    picture = indices(MAPS, columns=columns, scale=scale)
    assert picture.shape == (rows * (3 * scale + 1) - 1, used * (4 * scale + 1) - 1)


def test_a_cell_is_a_square_of_equal_pixels() -> None:
    once, thrice = indices(MAPS[:1]), indices(MAPS[:1], scale=3)
    assert np.array_equal(thrice, once.repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 7), (64, 112, 112), (2048, 7, 7), (3, 1, 300)])
def test_the_default_scale_is_the_largest_within_1024_pixels(shape: tuple[int, int, int]) -> None:
    drawn = draw(feature_map(np.zeros(shape, np.float32)), Drawing())
    scale, columns = int(drawn.scale["scale"]), int(drawn.scale["columns"])
    rows = -(-shape[0] // columns)
    sides = [
        [n * (cells * s + 1) - 1 for n, cells in ((rows, shape[1]), (columns, shape[2]))]
        for s in (scale, scale + 1)
    ]
    assert max(sides[0]) <= 1024 < max(sides[1])
    assert opened(drawn.body).size == (sides[0][1], sides[0][0])


def test_a_dead_channel_is_exactly_black_under_either_normalisation() -> None:
    maps = MAPS.copy()
    maps[2] = 0
    for normalize in ("layer", "channel"):
        picture = colors(maps, normalize=normalize)
        assert (tile(picture, 2, 3, 3, 4) == BLACK).all()
        assert (picture[:, 4] == NOTHING).all()


def test_zero_of_a_signed_map_is_exactly_neutral() -> None:
    maps = MAPS - 2
    maps[1] = 0
    for normalize in ("layer", "channel"):
        picture = colors(maps, after_activation=False, normalize=normalize)
        assert (tile(picture, 1, 3, 3, 4) == NEUTRAL).all()


def test_positive_is_red_and_negative_blue() -> None:
    blue, red = colors(floats([[-1, 1]]))[0].astype(int)
    assert blue[2] > blue[0]
    assert red[0] > red[2]


def test_opposite_values_have_opposite_levels() -> None:
    maps = np.random.default_rng(1).normal(size=(4, 5, 5)).astype(np.float32)
    levels, opposite = indices(maps), indices(-maps)
    shown = levels != GAP
    assert (levels[shown].astype(int) + opposite[shown] == 254).all()


@pytest.mark.parametrize(
    ("smallest", "after_activation", "neutral"),
    [(-0.28, True, 0), (-0.28, False, 127), (-1.5, True, 127), (0.0, False, 0)],
)
def test_what_leaks_through_an_activation_is_black(
    smallest: float, after_activation: bool, neutral: int
) -> None:
    """SiLU's least value beside a largest of 10; then a conv's, an ELU-like one, a softmax's."""
    drawn = indices(floats([[smallest, 0, 10]]), after_activation=after_activation)
    assert drawn[0, 1] == neutral
    assert drawn[0, 2] == 254


def test_normalising_by_channel_gives_each_its_own_scale() -> None:
    picture = indices(MAPS, normalize="channel")
    for channel, values in enumerate(MAPS):
        assert np.array_equal(tile(picture, channel, 3, 3, 4), np.rint(254 * (values / values.max())))


def test_a_constant_channel_is_full_by_its_own_scale() -> None:
    assert indices(floats([[3, 3]], [[0, 0]]), normalize="channel").tolist() == [[254, 254, GAP, 0, 0]]


def test_fixed_limits_are_kept_and_what_lies_outside_saturates() -> None:
    values = floats([[-9, -1, 0, 1, 2, 9]])
    assert indices(values, normalize="fixed", vmin=-1, vmax=2).tolist() == [[0, 0, 85, 169, 254, 254]]


@given(st.floats(0.5, 60))
def test_clipping_saturates_the_top_per_cent_of_magnitudes(clip: float) -> None:
    values = np.random.default_rng(2).normal(size=(1, 20, 20)).astype(np.float32)
    reach = np.percentile(np.abs(values).astype(np.float64), 100 - clip)
    expected = np.rint(254 * np.clip((values[0] / reach + 1) / 2, 0, 1))
    assert np.abs(indices(values, clip=clip) - expected).max() <= 1
    assert abs(np.mean(np.abs(values) > reach) - clip / 100) <= 1 / values.size


def test_clipping_a_nearly_dead_map_keeps_its_only_value() -> None:
    values = np.zeros((1, 10, 10), np.float32)
    values[0, 3, 4] = 7
    assert indices(values, clip=10)[3, 4] == 254


def test_not_a_number_has_no_level_and_infinities_saturate() -> None:
    values = floats([[np.nan, np.inf, -np.inf, 0, 2]])
    drawn = draw(feature_map(values), Drawing(scale=1))
    assert np.asarray(opened(drawn.body)).tolist() == [[GAP, 254, 0, 0, 254]]
    assert drawn.scale["non_finite"] == "3"
    assert drawn.scale["vmax"] == "2"


def test_nothing_but_nan_is_drawn_without_any_level() -> None:
    assert (indices(np.full((2, 2, 2), np.nan, np.float32)) == GAP).all()


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8", "int8", "int64", "bool"])
def test_every_number_is_drawn_as_float32_would_be(dtype: str) -> None:
    values = np.array([[[0, 1], [1, 0]]])
    assert np.array_equal(indices(values.astype(dtype)), indices(values.astype(np.float32)))


def test_the_channels_of_nhwc_are_those_of_nchw() -> None:
    assert np.array_equal(indices(np.moveaxis(MAPS, 0, -1), "NHWC"), indices(MAPS))


def test_one_channel_keeps_the_scale_of_the_layer() -> None:
    layer_wide = indices(MAPS, style="channel", channel=3)
    assert np.array_equal(layer_wide, np.rint(254 * (MAPS[3] / MAPS.max())))
    own = indices(MAPS, style="channel", channel=3, normalize="channel")
    assert np.array_equal(own, np.rint(254 * (MAPS[3] / MAPS[3].max())))


def test_a_vector_is_a_row_of_bars_that_grow_with_the_value() -> None:
    picture = indices(floats(0, 1, 2, 4), "NC", columns=4, scale=2)
    assert picture.shape == (64, 4 * 3 - 1)
    assert [(picture[:, 3 * c] > 0).sum() for c in range(4)] == [0, 16, 32, 64]
    assert [picture[63, 3 * c] for c in range(4)] == [0, 64, 127, 254]
    assert (picture[:, 2::3] == GAP).all()


def test_bars_of_a_signed_vector_grow_from_the_middle() -> None:
    picture = indices(floats(-4, 0, 2, np.nan), "NC", columns=4)[:, ::2]
    assert [np.flatnonzero(column != 127).tolist() for column in picture.T[:3]] == [
        list(range(32, 64)),
        [],
        list(range(16, 32)),
    ]
    assert (picture[:, 3] == GAP).all()


def test_two_thousand_channels_without_space_are_a_readable_picture() -> None:
    drawn = draw(feature_map(np.ones(2048, np.float32), "NC"), Drawing())
    assert max(opened(drawn.body).size) < 1600
