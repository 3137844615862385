"""Entity tags computed before anything runs, and what may be kept for how long (RFC 9110, 9111)."""

import hashlib
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.engine.loaded import LoadedModel
from service.errors import VersionNotFound
from service.web.context import caller_of

# A day in seconds: another release of the service or the runtime may round or draw otherwise.
LASTING_S = 86_400


def tag(model: LoadedModel, asked: str, runtime: str) -> str:
    """A weak tag over everything that decides the answer, `asked` in a text that is always the same.

    It is weak since floating point may differ in the last bits between machines and plans.
    """
    content: dict[str, Any] = {
        "service": __version__,
        "runtime": runtime,
        "provider": model.provider,
        "graph_optimization": model.graph_optimization,
        "tf32": model.tf32,
        "digest": model.identity.digest,
        "preprocessing_digest": model.identity.preprocessing_digest,
        "model": [model.identity.name, model.identity.version],
        "asked": asked,
    }
    text = json.dumps(content, sort_keys=True).encode()
    return f'W/"{hashlib.sha256(text).hexdigest()[:32]}"'


def matches(request: Request, etag: str) -> bool:
    """Whether If-None-Match names the tag, by weak comparison.

    `*` asks whether there is any answer, which is not known before it is computed: it matches none.
    """
    given = [part.strip() for part in ",".join(request.headers.getlist("if-none-match")).split(",")]
    return etag.removeprefix("W/") in [part.removeprefix("W/") for part in given]


def check_digests(model: LoadedModel, digest: str | None, preprocessing_digest: str | None) -> None:
    """Refuse pinned digests that are another model's, or of another preprocessing.

    Raises:
        VersionNotFound
    """
    who = model.identity
    asked = {"digest": digest, "preprocessing_digest": preprocessing_digest}
    for name, given in asked.items():
        if given is not None and given != getattr(who, name):
            raise VersionNotFound(
                f"model {who.name!r} version {who.version} has the {name} {getattr(who, name)}, not {given!r}"
            )


def cache_headers(request: Request, etag: str, *, pinned: bool = False) -> dict[str, str]:
    """`immutable` only where the URL names the very model and its preprocessing.

    With keys on, an answer is its caller's own.
    """
    is_private = bool(caller_of(request).name)
    lasting = f"max-age={LASTING_S}, immutable" if pinned else "no-cache"
    return {
        "ETag": etag,
        "Cache-Control": f"{'private' if is_private else 'public'}, {lasting}",
        "Vary": "Accept-Encoding, Authorization" if is_private else "Accept-Encoding",
    }


def not_modified(headers: dict[str, str]) -> Response:
    """304: the client's copy is still right, and nothing ran."""
    return Response(None, 304, headers)
