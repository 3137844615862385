"""What pages of other origins may do."""

from collections.abc import Iterator

import httpx
import pytest

from service.errors import ConfigurationError
from service.web import cors
from tests.builders import encoded, photograph, put, small_cnn
from tests.servers import serving

FRIEND, STRANGER = "https://friend.example", "https://stranger.example"
ASK = "/v1/models/small/render?layer=stem/relu"
# Those that every page may read (Fetch standard, CORS-safelisted response-header name).
SAFELISTED = {"cache-control", "content-language", "content-length", "content-type", "expires", "pragma"}
# Those that are for the browser and its caches.
FOR_THE_BROWSER = {
    "content-encoding",
    "content-security-policy",
    "cross-origin-resource-policy",
    "date",
    "referrer-policy",
    "vary",
    "x-content-type-options",
    "x-frame-options",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    with serving("--models", str(folder), "--cors-origins", FRIEND) as server, server.client() as client:
        yield client


def told(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if not name.startswith("access-control-")}


def test_a_page_of_an_allowed_origin_reads_answers_with_all_their_headers(page: httpx.Client) -> None:
    image = encoded(photograph(), "PNG")
    answers = [
        page.post(ASK, content=image, headers={"Origin": FRIEND}),
        page.post("/v1/images", content=image, headers={"Origin": FRIEND}),
        page.get("/v1/models/small/filters?layer=stem/conv", headers={"Origin": FRIEND}),
        page.get("/v1/models/absent", headers={"Origin": FRIEND}),
    ]
    assert [answer.status_code for answer in answers] == [200, 201, 200, 404]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
        readable = answer.headers["Access-Control-Expose-Headers"].lower().split(", ")
        assert told(answer) <= {*readable, *SAFELISTED, *FOR_THE_BROWSER}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_a_browser_that_asks_first_is_told_yes(page: httpx.Client, method: str) -> None:
    headers = {
        "Origin": FRIEND,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = page.options("/v1/images", headers=headers)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, FRIEND)
    assert method in answer.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_page_of_another_origin_reads_nothing(page: httpx.Client, client: httpx.Client) -> None:
    for service in (page, client):
        answer = service.get("/v1/models", headers={"Origin": STRANGER})
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("url", ["/v1/models", "/livez", "/nothing", "/openapi.json", "/docs", "/metrics"])
def test_no_page_frames_an_answer(client: httpx.Client, url: str) -> None:
    answer = client.get(url)
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_a_kept_image_is_a_document_that_may_do_nothing(client: httpx.Client) -> None:
    kept = client.post("/v1/images", content=encoded(photograph(), "PNG")).json()["id"]
    policy = client.get(f"/v1/images/{kept}").headers["Content-Security-Policy"]
    assert {"sandbox", "default-src 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))


@pytest.mark.parametrize("origin", ["friend.example", "https://friend.example/", "null", "file://"])
def test_what_is_no_origin_is_an_error_at_start(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="cors_origins"):
        cors.options([origin])
