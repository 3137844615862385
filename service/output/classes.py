"""The highest values of an output as text, with places and labels (the v2 protocol's classification)."""

from collections.abc import Sequence

import numpy as np

from service.values import Array

# As Triton limits it.
MOST_CLASSES = 1_000_000
# Of each value while all are ranked: as float64, that turned round, and its place.
RANKING_BYTES = 24


def classify(values: Array, most: int, labels: Sequence[str], *, batched: bool) -> Array:
    """The `most` highest values of each image, or of everything: (N, k) or (k,) texts, highest first.

    A text is `<value>:<place>`, and `:<label>` where there are as many labels as values. Values have
    six decimals; of equals the first comes first, and what is not a number comes last.
    """
    rows = values.reshape(len(values) if batched else 1, -1 if values.size else 0).astype(np.float64)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :most]
    known = labels if len(labels) == rows.shape[1] else ()
    texts = np.empty(order.shape, object)
    for row, places in enumerate(order):
        texts[row] = [_text(rows[row, place], place, known) for place in places]
    return texts if batched else texts[0]


def _text(value: float, place: int, labels: Sequence[str]) -> str:
    text = f"{value:.6f}:{place}"
    return f"{text}:{labels[place]}" if labels else text
