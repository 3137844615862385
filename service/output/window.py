"""From a region of the photograph to the cells of a layer's grid whose centres lie in it."""

import math

from service.errors import InvalidParameter, NotCombinable
from service.syntax import Region
from service.values import Layer, Placement, Window


def find_window(region: Region, layer: Layer, placement: Placement, seen: tuple[int, int]) -> Window:
    """The cells whose centre lies in the region, at least one: the nearest where none does.

    Photograph and tensor are measured from pixel edges. The centre of cell `u` lies in the middle
    of the input pixel `centre + u * reduction`, which is half a pixel from that pixel's edge.
    `seen` is the tensor's (H, W).

    Raises:
        InvalidParameter: the region lies wholly outside what the network saw.
        NotCombinable: the layer has no space, its geometry is unknown, or all its cells look at one place.
    """
    rows, columns = _cells(layer)
    assert layer.reduction is not None
    assert layer.centre is not None
    spans = _spans(region, placement, seen)
    (y, height), (x, width) = (
        _covered(span, float(centre) + 0.5, float(step), cells)
        for span, centre, step, cells in zip(
            spans, layer.centre, layer.reduction, (rows, columns), strict=True
        )
    )
    return Window(y, x, height, width)


def has_place(layer: Layer) -> bool:
    """Whether the layer's cells can be placed on the photograph.

    A Resize of a single cell with align_corners makes many that look at one place: their reduction is 0.
    """
    return layer.centre is not None and layer.reduction is not None and min(layer.reduction) > 0


def _cells(layer: Layer) -> tuple[int, int]:
    if not layer.has_space or not has_place(layer):
        raise NotCombinable(
            f"layer {layer.name!r} has no known place in the photograph, so region cannot be cut out of it: "
            "leave it out, or ask for region with other layers",
            layer=layer.name,
        )
    assert layer.shape is not None
    rows, columns = layer.shape[2:4] if layer.layout == "NCHW" else layer.shape[1:3]
    if rows is None or columns is None:
        raise NotCombinable(f"layer {layer.name!r} has a shape that is known only when it runs")
    return rows, columns


def _spans(region: Region, placement: Placement, seen: tuple[int, int]) -> list[tuple[float, float]]:
    """The region's rows and columns in the tensor, from edge to edge."""
    spans = []
    for start, length, side, scale, offset, end in zip(
        (region.y, region.x),
        (region.height, region.width),
        placement.photo,
        placement.scale,
        placement.offset,
        seen,
        strict=True,
    ):
        unit = side / 100 if region.percent else 1.0
        low, high = max(start * unit, 0.0), min((start + length) * unit, side)
        first, last = low * scale + offset, high * scale + offset
        if low >= high or last <= 0 or first >= end:
            raise InvalidParameter(
                f"the region lies wholly outside what the network saw of the photograph of "
                f"{placement.photo[1]}x{placement.photo[0]} pixels",
                parameter="region",
            )
        spans.append((first, last))
    return spans


def _covered(span: tuple[float, float], first: float, step: float, cells: int) -> tuple[int, int]:
    """First cell and number of cells with `first + u * step` in the half-open span."""
    low, high = ((edge - first) / step for edge in span)
    # A cell whose centre lies on an edge must not slip out by a rounding of the last bit.
    start, stop = math.ceil(low - 1e-9), math.ceil(high - 1e-9)
    start, stop = max(start, 0), min(stop, cells)
    if start < stop:
        return start, stop - start
    nearest = round((low + high) / 2)
    return min(max(nearest, 0), cells - 1), 1
