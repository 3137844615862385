"""Files of the pages as Starlette finds them, with our headers and content encodings; from no other host."""

import asyncio
from functools import cache
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from service.output.coding import encode
from service.values import Chunk, Coding
from service.web.answers import PiecesResponse
from service.web.etags import not_modified
from service.web.negotiation import choose_coding

FOLDER = Path(__file__).parent / "static"
# The machine's own table of types differs from one to the next.
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Scripts and styles from here alone and in files of their own; pictures also from the page's memory.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "public, no-cache",
    "Vary": "Accept-Encoding",
    "Content-Security-Policy": PAGE_POLICY,
}


class PageFiles(StaticFiles):
    """The files of one folder of `static`."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with a file under the content encoding that the client prefers, or 304.

        Raises:
            HTTPException: there is no such file.
        """
        response = await super().get_response(path, scope)
        # Weak, since the same tag stands for every content encoding of the file.
        headers = {**HEADERS, "ETag": f"W/{response.headers['ETag']}"}
        if not isinstance(response, FileResponse):
            return not_modified(headers)
        file, wanted = Path(response.path), choose_coding(Headers(scope=scope).get("Accept-Encoding"))
        chunks, coding = await asyncio.to_thread(_read, file, headers["ETag"], wanted)
        if coding:
            headers["Content-Encoding"] = coding
        return PiecesResponse(chunks, headers, TYPES.get(file.suffix, "text/plain"))


@cache
def _read(file: Path, etag: str, wanted: Coding | None) -> tuple[tuple[Chunk, ...], Coding | None]:
    """Read and encode a file, once for each ETag; it stays as it is where encoding does not pay."""
    body = (file.read_bytes(),)
    encoded = encode(body, wanted) if wanted else None
    return (encoded, wanted) if encoded else (body, None)
