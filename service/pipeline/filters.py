"""The weights that made a layer, as arrays or drawn."""

from service.engine.loaded import LoadedModel
from service.errors import AnswerTooLarge, InvalidParameter, NotDrawable
from service.output.pictures.filters import COLORS, draw_filters
from service.output.table import FORMATS
from service.pipeline.request import Encoded
from service.values import Array

PICTURES = ("png", "webp")
FLAT = 4


def encode_filters(model: LoadedModel, layer: str, kind: str, max_bytes: int) -> Encoded:
    """The filters of a layer's convolution, one for each channel it makes: (out, in / groups, kh, kw).

    Raises:
        LayerNotFound: no such layer.
        InvalidParameter: the term means several layers.
        NotDrawable: a picture of filters that are not flat.
        NoFilters: no convolution made it.
        AnswerTooLarge
    """
    found, *more = model.layers().select([layer])
    if more:
        raise InvalidParameter(
            f"layer means {len(more) + 1} layers; filters are those of one: give an exact name",
            parameter="layer",
            limit=1,
            actual=len(more) + 1,
        )
    filters = model.filters(found.name)
    weights: Array = filters.by_channel()
    _check_size(found.name, weights, max_bytes)
    if kind in PICTURES:
        if weights.ndim != FLAT:
            raise NotDrawable(
                f"the filters of {found.name!r} have {weights.ndim - 2} sides; two can be drawn"
            )
        return _drawn(model, weights, kind, reads_image=filters.reads_image)
    told = {
        "model": model.identity.name,
        "version": model.identity.version,
        "digest": model.identity.digest,
        "layer": found.name,
        "node": filters.node,
        "groups": filters.groups,
        "strides": filters.strides,
        "dilations": filters.dilations,
        "transposed": filters.transposed,
    }
    array_format = FORMATS[kind]
    return Encoded(
        array_format.encode({"weights": weights}, told, "none"),
        array_format.media_type,
        array_format.extension,
    )


def _drawn(model: LoadedModel, weights: Array, kind: str, *, reads_image: bool) -> Encoded:
    colored = reads_image and weights.shape[1] == COLORS
    # A model fed with BGR has its first plane for blue.
    shown = weights[:, ::-1] if colored and model.recipe and model.recipe.color == "bgr" else weights
    body, media_type, extension = draw_filters(
        shown, colored=colored, format="png" if kind == "png" else "webp"
    )
    return Encoded((body,), media_type, extension)


def _check_size(layer: str, weights: Array, max_bytes: int) -> None:
    if weights.nbytes > max_bytes:
        raise AnswerTooLarge(
            f"the filters of {layer!r} are {weights.nbytes} bytes and at most {max_bytes} are sent",
            limit=max_bytes,
            actual=weights.nbytes,
        )
