"""The page in a real Chromium, in front of a real service."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import Visit, browsing, watched
from tests.conftest import ROOT
from tests.page.service import Running, running

WEBCAM = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
WIDE, NARROW = {"width": 1400, "height": 950}, {"width": 380, "height": 800}
Opening = Callable[..., Page]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The bundled model."""
    with running(tmp_path_factory.mktemp("page"), ROOT / "models") as service:
        yield service


@pytest.fixture(scope="session")
def http(service: Running) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing(400, 300, *WEBCAM) as visit:
        assert visit.page.context.browser
        yield visit.page.context.browser


@pytest.fixture
def visits() -> list[Visit]:
    """Every page that was opened."""
    return []


@pytest.fixture
def expected() -> list[str]:
    """What a test makes the browser complain about: beginnings of sentences."""
    # A picture that is not wanted any more is not fetched to its end; and when an interface of the machine
    # comes or goes, Chromium begins its connections anew, as does the page.
    return ["failed: ", "Failed to load resource: net::ERR_NETWORK_CHANGED"]


@pytest.fixture
def opening(
    service: Running, browser: Browser, visits: list[Visit], expected: list[str]
) -> Iterator[Opening]:
    """Opens the page in a browser of its own; afterwards no other host was asked and nothing failed."""
    with ExitStack() as closing:

        def open_page(view: str = "", url: str = service.url, wait: bool = True, **given: Any) -> Page:
            context = browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **given})
            closing.callback(context.close)
            context.set_default_timeout(60_000)
            visits.append(watched(context.new_page()))
            page = visits[-1].page
            page.goto(f"{url}/#{view}")
            if wait:
                page.wait_for_selector("#channel-facts .histogram", state="attached")
            return page

        yield open_page
        for visit in visits:
            assert visit.hosts() <= {service.url.removeprefix("http://"), *allowed(visit)}
            assert [said for said in visit.complaints if not said.startswith(tuple(expected))] == []


def allowed(visit: Visit) -> set[str]:
    """The host that the page came from, where a test has a service of its own."""
    return {visit.page.url.split("/")[2]}


@pytest.fixture
def page(opening: Opening) -> Page:
    """The page with the sample, looked at for the first time."""
    return opening()


# What is looked for comes at last, also where many others compute.
expect.set_options(timeout=30_000)
REFUSED = "Failed to load resource: the server responded with a status of "


def picture(folder: Path, body: bytes, name: str = "photo.png") -> Path:
    path = folder / name
    path.write_bytes(body)
    return path
