"""Payloads and JSON to HTTP responses, with the headers that every answer carries."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.output.coding import encode
from service.values import Chunk, Identity, Payload
from service.web.negotiation import choose_coding

# In the order that they happen; only what was measured is told.
TIMED = ("decode", "preprocess", "queue", "run", "reduce", "encode", "compress")


# What the server holds at most for a client that takes nothing.
PIECE_BYTES = 1 << 20


class PiecesResponse(Response):
    """A body in pieces that are not joined, so that a feature map is not copied once more."""

    def __init__(self, chunks: tuple[Chunk, ...], headers: Mapping[str, str], media_type: str) -> None:
        self._chunks = chunks
        length = {"Content-Length": str(sum(len(chunk) for chunk in chunks))}
        super().__init__(None, 200, {**headers, **length}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pieces = [
            memoryview(chunk)[start : start + PIECE_BYTES]
            for chunk in self._chunks
            for start in range(0, len(chunk), PIECE_BYTES)
        ]
        for piece in pieces[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": pieces[-1] if pieces else b""})


def payload_response(payload: Payload) -> Response:
    """Feature maps as they were encoded."""
    headers = {
        **payload.headers,
        **model_headers(payload.model),
        "Server-Timing": server_timing(payload.timings),
        "Vary": "Accept, Accept-Encoding",
        "Cache-Control": "no-store",
        "Content-Disposition": disposition(payload.file_name, payload.media_type),
    }
    if payload.coding:
        headers["Content-Encoding"] = payload.coding
    return PiecesResponse(payload.chunks, headers, payload.media_type)


def disposition(file_name: str, media_type: str) -> str:
    """Arrays are saved under a name, pictures and JSON are shown (RFC 6266)."""
    shown = media_type.startswith("image/") or media_type == "application/json"
    return f'{"inline" if shown else "attachment"}; filename="{file_name}"'


def json_response(content: Mapping[str, Any], model: Identity | None = None) -> Response:
    """JSON, written by a library that is quick on long lists."""
    headers = {"Cache-Control": "no-cache", **(model_headers(model) if model else {})}
    return Response(orjson.dumps(content), 200, headers, "application/json")


def long_json_response(content: Mapping[str, Any], model: Identity, accept_encoding: str | None) -> Response:
    """JSON that may be long, coded where the client takes it; to be called in a thread."""
    body: tuple[Chunk, ...] = (orjson.dumps(content),)
    headers = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding", **model_headers(model)}
    if (wanted := choose_coding(accept_encoding)) and (packed := encode(body, wanted)):
        body, headers["Content-Encoding"] = packed, wanted
    return PiecesResponse(body, headers, "application/json")


def model_headers(model: Identity) -> dict[str, str]:
    """Which model answered."""
    return {
        "Featuremaps-Model": f"{model.name}/{model.version}",
        "Featuremaps-Model-Digest": model.digest,
    }


def server_timing(seconds: Mapping[str, float]) -> str:
    """Durations in milliseconds (W3C Server Timing)."""
    return ", ".join(f"{s};dur={seconds[s] * 1000:.3f}" for s in TIMED if s in seconds)
