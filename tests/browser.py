"""A real Chromium, which writes down what it asks for and what it complains about."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@dataclass
class Visit:
    """A page; `complaints` are errors of scripts, of the console (a policy's among them) and of loading."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def hosts(self) -> set[str]:
        """Whom it asked, without what lies in the page's own memory."""
        return {urlsplit(url).netloc for url in self.asked if not url.startswith(("data:", "blob:"))}


@contextmanager
def browsing(width: int = 1280, height: int = 900, *flags: str) -> Iterator[Visit]:
    """An empty page of a new browser; not for longer than a test file, since it runs an event loop.

    Skips the test where there is no Chromium.
    """
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium: install Debian's chromium to run what needs a browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*QUIET, *flags])
        page = browser.new_page(viewport={"width": width, "height": height})
        yield watched(page)
        browser.close()


def watched(page: Page) -> Visit:
    """Write down what a page asks for and what it complains about."""
    visit = Visit(page)
    page.on("request", lambda request: visit.asked.append(request.url))
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("requestfailed", lambda request: visit.complaints.append(f"failed: {request.url}"))
    page.on("console", lambda said: visit.complaints.append(said.text) if said.type == "error" else None)
    return visit
