"""The API's own page: every operation, to be read and tried. It asks no other host for anything."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.web.door import pipeline_of
from service.web.static_files import file_response, find_file

FOLDER = "docs"
router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page."""
    return await docs_file("index.html", request)


@router.get("/docs/{name}")
async def docs_file(name: str, request: Request) -> Response:
    """What the page is made of."""
    return file_response(await pipeline_of(request).in_thread(find_file, FOLDER, name), request)
