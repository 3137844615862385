"""The page to look through a network. It asks no other host for anything."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.web.door import pipeline_of
from service.web.static_files import file_response, find_file

FOLDER = "page"
router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return await page_file("index.html", request)


@router.get("/static/{name}")
async def page_file(name: str, request: Request) -> Response:
    """What the page is made of."""
    return file_response(await pipeline_of(request).in_thread(find_file, FOLDER, name), request)
