"""The two pages: one to look through a network, one to read and try the API. They ask no other host."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.web.context import pipeline_of
from service.web.static_files import file_response, find_file

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """The page to look through a network."""
    return await _file("page", "index.html", request)


@router.get("/static/{name}")
async def page_file(name: str, request: Request) -> Response:
    """What that page is made of."""
    return await _file("page", name, request)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Every operation of the API, to be read and tried."""
    return await _file("docs", "index.html", request)


@router.get("/docs/{name}")
async def docs_file(name: str, request: Request) -> Response:
    """What that page is made of."""
    return await _file("docs", name, request)


async def _file(folder: str, name: str, request: Request) -> Response:
    return file_response(await pipeline_of(request).in_thread(find_file, folder, name), request)
