"""What schemathesis cannot guess: bytes that are images, and names that exist.

Without it nearly every case would end at a model that is not there.
"""

import os
from typing import Any
from urllib.parse import urlencode

import numpy as np
import schemathesis
from hypothesis import strategies as st

from tests.builders import encoded, npy, photograph

LONGEST_QUERY = 60_000
MODELS = ("small", "fixed", "reshaping", "versions", "broken")
LAYERS = ("stages", "stem/relu", "*relu", "index:0..3", "op:Conv", "reduction:4", "outputs", "pool", "image")
PHOTOGRAPH = photograph(24, 16)
IMAGES = [encoded(PHOTOGRAPH, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
ARRAYS = [
    npy(np.zeros(shape, dtype))
    for shape in ((3, 32, 32), (2, 3, 32, 32), (1, 3, 8, 8), (0, 3, 8, 8), (3,))
    for dtype in (np.float32, np.float64, np.uint8)
]
# Whole ones, broken ones, and what is none.
HALVES = [image[: len(image) // 2] for image in IMAGES]
BYTES = st.sampled_from(IMAGES) | st.sampled_from(HALVES) | st.binary()

for media_type in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(media_type, BYTES)
schemathesis.openapi.media_type("application/x-npy", st.sampled_from(ARRAYS) | st.binary())


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Most names that a model could have become those of models."""
    return _named(path_parameters)


@schemathesis.hook
def filter_query(context: Any, query: dict[str, Any] | None) -> bool:
    """A URL over 64 KiB is refused by the HTTP parser itself, before the service sees it."""
    return len(urlencode(query or {}, doseq=True, errors="replace")) < LONGEST_QUERY


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Likewise models and layers."""
    query = _named(query)
    if query and isinstance(query.get("layers"), list):
        query["layers"] = [_one_of(LAYERS, term) for term in query["layers"][:4]]
    if query and isinstance(query.get("layer"), str):
        query["layer"] = _one_of(LAYERS, query["layer"])
    return query


def _named(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    if parameters and isinstance(name := parameters.get("model"), str) and name.isascii() and name.isalnum():
        parameters["model"] = _one_of(MODELS, name)
    if parameters and "image_id" in parameters and len(str(parameters["image_id"])) == 64:
        parameters["image_id"] = os.environ["FUZZ_IMAGE_ID"]
    return parameters


def _one_of(names: tuple[str, ...], given: Any) -> Any:
    """One of the names in seven cases of eight, decided by what was given."""
    if not isinstance(given, str) or len(given) % 8 == 7:
        return given
    return names[sum(given.encode("utf-8", "surrogatepass")) % len(names)]
