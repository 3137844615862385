"""The page of the API and the files that it is made of, over the wire and in a real browser."""

import gzip
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Locator

from service.web.static_files import FOLDER, PAGE_POLICY
from tests.browser import Visit, browsing
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


def filled_in(visit: Visit, server: Server, operation: str, photo: Path) -> Locator:
    """The form of an operation that takes an image, with its own example of a model and a photograph."""
    visit.page.goto(f"{server.url}/docs")
    form = visit.page.locator(f"[id='operations-feature_maps-{operation}']")
    form.locator(".opblock-summary").click()
    assert form.locator("tr[data-param-name=model] input").input_value() == "cifar-resnet"
    form.locator("tr[data-param-name=model] input").fill("small")
    form.locator("input[type=file]").set_input_files(photo)
    return form


def test_a_photograph_can_be_uploaded_and_arrays_downloaded(
    server: Server, client: httpx.Client, jpeg: bytes, tmp_path: Path
) -> None:
    photo = tmp_path / "photograph.jpg"
    photo.write_bytes(jpeg)
    with browsing() as visit:
        form = filled_in(visit, server, "extract_features", photo)
        form.locator("button.execute").click()
        with visit.page.expect_download() as download:
            form.locator(".live-responses-table a[download]").click()
        download.value.save_as(tmp_path / "maps.npz")
        form = filled_in(visit, server, "render_features", photo)
        form.locator("tr[data-param-name=layer] input").fill("stem/relu")
        form.locator("button.execute").click()
        picture = form.locator(".live-responses-table img")
        picture.wait_for()
        visit.page.wait_for_function("img => img.naturalWidth > 0", arg=picture.element_handle())
    assert visit.complaints == []
    expected = client.post("/v1/models/small/features", content=jpeg).content
    with np.load(tmp_path / "maps.npz") as maps, np.load(io.BytesIO(expected)) as given:
        assert maps.files == given.files
        assert all(np.array_equal(maps[name], given[name]) for name in maps.files[:-1])
