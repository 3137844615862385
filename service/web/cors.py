"""Which pages of other origins may ask and read the answers (CORS), as Starlette's middleware does it."""

import re
from collections.abc import Sequence
from typing import Any

from service.errors import ConfigurationError

ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-fA-F:]+\](:\d{1,5})?")
# Beside those that every page may read (content type and length, cache control, expires).
READABLE = (
    "Content-Disposition",
    "ETag",
    "Featuremaps-Caller",
    "Featuremaps-Model",
    "Featuremaps-Model-Digest",
    "Featuremaps-Scale",
    "Inference-Header-Content-Length",
    "Location",
    "Retry-After",
    "Server-Timing",
    "WWW-Authenticate",
    "X-Request-Id",
)
SENT = (
    "Authorization",
    "Content-Encoding",
    "If-None-Match",
    "Inference-Header-Content-Length",
    "X-Request-Id",
    "traceparent",
)
PREFLIGHT_MAX_AGE_S = 600


def options(origins: Sequence[str]) -> dict[str, Any]:
    """What the middleware is told. No cookies: keys are sent in a header.

    Raises:
        ConfigurationError: what is given is no origin.
    """
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"cors_origins: {origin!r} is no origin such as https://example.org, nor *"
            )
    return {
        "allow_origins": list(origins),
        "allow_methods": ("GET", "HEAD", "POST", "PUT", "DELETE"),
        "allow_headers": SENT,
        "expose_headers": READABLE,
        "max_age": PREFLIGHT_MAX_AGE_S,
    }


def resource_policy(origins: Sequence[str]) -> str:
    """Cross-Origin-Resource-Policy: who may show an answer without asking by CORS."""
    return "cross-origin" if "*" in origins else "same-origin"
