"""The page of the API and the files that it is made of, over the wire and in a real browser."""

import gzip

import httpx
import pytest

from service.web.static_files import FOLDER, PAGE_POLICY
from tests.browser import browsing
from tests.servers import Server
from tests.web.test_refusals import problem

FILES = {
    "/docs": ("index.html", "text/html; charset=utf-8"),
    "/docs/start.js": ("start.js", "text/javascript; charset=utf-8"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    "/docs/swagger-ui.css": ("swagger-ui.css", "text/css; charset=utf-8"),
    "/docs/swagger-ui.LICENSE": ("swagger-ui.LICENSE", "text/plain; charset=utf-8"),
}


@pytest.mark.parametrize("url", FILES)
def test_a_file_is_sent_as_it_is_with_its_type_and_the_policy(client: httpx.Client, url: str) -> None:
    name, media_type = FILES[url]
    answer = client.get(url, headers={"Accept-Encoding": "identity"})
    assert answer.content == (FOLDER / "docs" / name).read_bytes()
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Content-Security-Policy"] == PAGE_POLICY


def test_a_file_is_coded_where_the_client_takes_it(server: Server, client: httpx.Client) -> None:
    headers = {"Accept-Encoding": "gzip"}
    with client.stream("GET", "/docs/swagger-ui-bundle.js", headers=headers) as answer:
        coded = b"".join(answer.iter_raw())
    assert (answer.headers["Content-Encoding"], answer.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert len(coded) < 700_000
    assert gzip.decompress(coded) == (FOLDER / "docs" / "swagger-ui-bundle.js").read_bytes()


def test_a_file_that_the_client_holds_is_not_sent_again(client: httpx.Client) -> None:
    etag = client.get("/docs/start.js").headers["ETag"]
    again = client.get("/docs/start.js", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2F..%2Fschemas.py", "%2e%2e", "a" * 5000, "%00"])
def test_what_is_no_file_of_the_page_is_not_found(client: httpx.Client, name: str) -> None:
    assert problem(client.get(f"/docs/{name}"))["code"] == "not-found"


@pytest.mark.parametrize("url", ["/docs", "/openapi.json"])
def test_a_page_is_for_reading_only(client: httpx.Client, url: str) -> None:
    answer = client.post(url)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_the_page_shows_every_operation_and_asks_no_other_host(server: Server, client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    with browsing() as visit:
        visit.page.goto(f"{server.url}/docs")
        visit.page.wait_for_selector(".opblock")
        shown = visit.page.locator(".opblock").count()
    assert shown == sum(len(operations) for operations in paths.values())
    assert visit.hosts() == {server.url.removeprefix("http://")}
    assert visit.complaints == []
