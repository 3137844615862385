"""Content negotiation: the format and the content encoding that a client likes best (RFC 9110, 12.5)."""

from collections.abc import Sequence

from service.errors import NotAcceptable
from service.output.table import FORMATS
from service.values import Coding

PREFERENCE: tuple[Coding, ...] = ("zstd", "gzip")
# All that clients of the v2 protocol undo, whatever they say that they accept.
OLD_CODINGS: tuple[Coding, ...] = ("gzip", "deflate")
PROBLEM = "application/problem+json"


def choose_format(accept: str | None) -> str | None:
    """The name of the array format that matches an Accept header best; None if the header leaves the choice.

    Raises:
        NotAcceptable: the header names none of ours.
    """
    ranges = _weights(accept or "")
    # A client that only adds problem+json still takes anything.
    ranges.pop(PROBLEM, None)
    if not ranges:
        return None
    offered = [kind for kind in FORMATS.values() if kind.available]
    best = max(offered, key=lambda kind: _weight_of(kind.media_type, ranges))
    if _weight_of(best.media_type, ranges) <= 0:
        types = ", ".join(kind.media_type for kind in offered)
        raise NotAcceptable(f"Accept names none of {types}; format= chooses one by name")
    return best.name


def choose_coding(accept_encoding: str | None, offered: Sequence[Coding] = PREFERENCE) -> Coding | None:
    """The content encoding that an Accept-Encoding header prefers, of equals the first; None for identity."""
    if not accept_encoding:
        return None
    weights = _weights(accept_encoding)
    wanted = {coding: weights.get(coding, weights.get("*", 0.0)) for coding in offered}
    best = max(offered, key=lambda coding: wanted[coding])
    return best if wanted[best] > 0 else None


def _weights(header: str) -> dict[str, float]:
    """What a header lists, with the weight of each (RFC 9110, 12.4.2)."""
    weights = {}
    for part in header.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name:
            weights[name] = next((_weight(p) for p in parameters if p.startswith("q=")), 1.0)
    return weights


def _weight(parameter: str) -> float:
    try:
        return min(max(float(parameter.removeprefix("q=")), 0.0), 1.0)
    except ValueError:
        return 0.0


def _weight_of(media_type: str, ranges: dict[str, float]) -> float:
    """The most specific range decides; old Java clients write `*` for any type."""
    candidates = (media_type, media_type.split("/")[0] + "/*", "*/*", "*")
    return next((ranges[candidate] for candidate in candidates if candidate in ranges), 0.0)
