"""Files of the package as answers: what the pages need, and nothing from any other host."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from service.errors import RouteNotFound
from service.output.coding import encode
from service.values import Chunk, Coding
from service.web import etags
from service.web.answers import PiecesResponse
from service.web.negotiation import PREFERENCE, choose_coding

FOLDER = Path(__file__).parent / "static"
# The machine's own table of types differs from one to the next.
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
# Scripts and styles from here alone and in files of their own; pictures also from the page's memory.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, eq=False)
class StaticFile:
    """One file as it is sent, under each content coding that makes it smaller."""

    body: bytes
    coded: Mapping[Coding, tuple[Chunk, ...]]
    media_type: str
    etag: str


def find_file(folder: str, name: str) -> StaticFile:
    """One file of a folder of `static`; to be called in a thread.

    Raises:
        RouteNotFound
    """
    files = read_folder(folder)
    if name not in files:
        raise RouteNotFound(f"there is no file {name[:100]!r} here; /openapi.json shows what is")
    return files[name]


@cache
def read_folder(name: str) -> Mapping[str, StaticFile]:
    """The files that lie directly in a folder of `static`, by name; read once, to be called in a thread."""
    return {path.name: _read(path) for path in (FOLDER / name).iterdir() if path.is_file()}


def file_response(file: StaticFile, request: Request) -> Response:
    """The file under the coding that the client likes best; 304 where it holds the same already."""
    headers = {
        "ETag": file.etag,
        "Cache-Control": "public, no-cache",
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": PAGE_POLICY,
    }
    if etags.matches(request, file.etag):
        return etags.not_modified(headers)
    chunks: tuple[Chunk, ...] = (file.body,)
    wanted = choose_coding(request.headers.get("accept-encoding"))
    if wanted is not None and wanted in file.coded:
        chunks, headers["Content-Encoding"] = file.coded[wanted], wanted
    return PiecesResponse(chunks, headers, file.media_type)


def _read(path: Path) -> StaticFile:
    body = path.read_bytes()
    tried = {coding: encode((body,), coding) for coding in PREFERENCE}
    return StaticFile(
        body,
        {coding: chunks for coding, chunks in tried.items() if chunks is not None},
        TYPES.get(path.suffix, "text/plain; charset=utf-8"),
        f'W/"{hashlib.sha256(body).hexdigest()[:32]}"',
    )
