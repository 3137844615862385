"""Entity tags computed before anything runs, and what may be kept for how long (RFC 9110, 9111)."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.engine.loaded import LoadedModel
from service.errors import VersionNotFound
from service.web.access import caller_of

# Seconds: a year, as long as the standard makes sense of.
FOR_EVER = 31_536_000
# The deadline changes whether there is an answer, not which.
NOT_PART_OF_THE_ANSWER = {"timeout_s"}


def tag(model: LoadedModel, subject: str, query: BaseModel, runtime: str) -> str:
    """A weak tag over everything that decides the answer.

    It is weak since floating point may differ in the last bits between machines and plans.
    """
    content: dict[str, Any] = {
        "service": __version__,
        "runtime": runtime,
        "provider": model.provider,
        "graph_optimization": model.graph_optimization,
        "digest": model.identity.digest,
        "preprocessing_digest": model.identity.preprocessing_digest,
        "model": [model.identity.name, model.identity.version],
        "subject": subject,
        "query": query.model_dump(mode="json", exclude=NOT_PART_OF_THE_ANSWER),
        "query_type": type(query).__name__,
    }
    text = json.dumps(content, sort_keys=True).encode()
    return f'W/"{hashlib.sha256(text).hexdigest()[:32]}"'


def matches(request: Request, etag: str) -> bool:
    """Whether If-None-Match names the tag, by weak comparison.

    `*` asks whether there is any answer, which is not known before it is computed: it matches none.
    """
    given = [part.strip() for part in request.headers.get("if-none-match", "").split(",")]
    return etag.removeprefix("W/") in [part.removeprefix("W/") for part in given]


def check_digest(model: LoadedModel, digest: str | None) -> None:
    """Refuse a pinned digest that is another model's.

    Raises:
        VersionNotFound
    """
    if digest is not None and digest != model.identity.digest:
        raise VersionNotFound(
            f"model {model.identity.name!r} version {model.identity.version} has the digest "
            f"{model.identity.digest}, not {digest[:64]!r}"
        )


def cache_headers(request: Request, etag: str, *, pinned: bool = False) -> dict[str, str]:
    """`immutable` only where the URL names the very model; with keys on, an answer is its caller's own."""
    is_private = bool(caller_of(request).name)
    lasting = f"max-age={FOR_EVER}, immutable" if pinned else "no-cache"
    return {
        "ETag": etag,
        "Cache-Control": f"{'private' if is_private else 'public'}, {lasting}",
        "Vary": "Accept-Encoding, Authorization" if is_private else "Accept-Encoding",
    }


def not_modified(headers: dict[str, str]) -> Response:
    """304: the client's copy is still right, and nothing ran."""
    return Response(None, 304, headers)
