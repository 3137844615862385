"""Feature maps written by hand, and pictures read back by Pillow."""

import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from service.output.pictures import draw
from service.parameters import Drawing
from service.values import FeatureMap, Layer, Layout, ReceptiveField

BLACK, NEUTRAL, NOTHING = (0, 0, 0), (247, 247, 247), (64, 64, 64)
CHANNEL_AXES = {"NCHW": 1, "NHWC": 3, "NC": 1, None: None}


def layer(
    shape: tuple[int | None, ...] | None = (1, 2, 3, 3),
    layout: Layout | None = "NCHW",
    *,
    after_activation: bool = True,
    reduction: Any = 4,
    centre: Any = 0,
    dtype: str = "float32",
) -> Layer:
    axis = CHANNEL_AXES[layout]
    pair = None if reduction is None else (Fraction(reduction), Fraction(reduction))
    middle = None if centre is None else (Fraction(centre), Fraction(centre))
    return Layer(
        name="relu",
        index=0,
        node="n",
        op="Relu",
        shape=shape,
        dtype=dtype,
        layout=layout,
        channel_axis=axis,
        batch_axis=0,
        channels=shape[axis] if shape and axis and axis < len(shape) else None,
        reduction=pair,
        receptive_field=ReceptiveField(None, None, "unknown"),
        centre=middle,
        macs=None,
        params=0,
        cumulative_macs=None,
        bytes_per_image=None,
        stage=None,
        after_activation=after_activation,
    )


def feature_map(values: object, layout: Layout = "NCHW", **facts: Any) -> FeatureMap:
    """One image's map of values (C, H, W), (H, W, C) or (C,)."""
    array = np.asarray(values)[None]
    return FeatureMap(layer(array.shape, layout, dtype=array.dtype.name, **facts), array)


def floats(*rows: object) -> np.ndarray:
    return np.array(rows, np.float32)


def opened(body: bytes) -> Image.Image:
    with Image.open(io.BytesIO(body)) as image:
        image.load()
        return image


def indices(values: np.ndarray, layout: Layout = "NCHW", **parameters: Any) -> np.ndarray:
    """The palette's indices of a PNG, drawn at one pixel a cell unless told otherwise."""
    facts = {k: parameters.pop(k) for k in ("after_activation",) if k in parameters}
    drawing = replace(Drawing(scale=1), **parameters)
    image = opened(draw(feature_map(values, layout, **facts), drawing).body)
    assert image.mode == "P"
    return np.asarray(image)


def colors(values: np.ndarray, **parameters: Any) -> np.ndarray:
    facts = {k: parameters.pop(k) for k in ("after_activation",) if k in parameters}
    drawing = replace(Drawing(scale=1), **parameters)
    return np.asarray(opened(draw(feature_map(values, **facts), drawing).body).convert("RGB"))
