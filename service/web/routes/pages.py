"""The two pages: one to look through a network, one to read and try the API. They ask no other host."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.web.static_files import FOLDER, PageFiles

router = APIRouter(include_in_schema=False)
PAGE, DOCS = PageFiles(directory=FOLDER / "page"), PageFiles(directory=FOLDER / "docs")


@router.get("/")
async def page(request: Request) -> Response:
    """The page to look through a network."""
    return await PAGE.get_response("index.html", request.scope)


@router.get("/static/{name}")
async def page_file(name: str, request: Request) -> Response:
    """A file of that page."""
    return await PAGE.get_response(name, request.scope)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Every operation of the API, to be read and tried."""
    return await DOCS.get_response("index.html", request.scope)


@router.get("/docs/{name}")
async def docs_file(name: str, request: Request) -> Response:
    """A file of that page."""
    return await DOCS.get_response(name, request.scope)
