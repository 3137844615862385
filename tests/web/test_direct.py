"""Operations that are called without FastAPI's steps answer as FastAPI does."""

import asyncio
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import make_app
from service.settings import Settings
from tests.builders import encoded, photograph, put, small_cnn

IMAGE = encoded(photograph(64, 48), "PNG")
JSON = {"Content-Type": "application/json"}
ZEROS = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.0] * 3 * 32 * 32}
INFERENCE = {"inputs": [ZEROS], "outputs": [{"name": "logits"}]}
# How long something took, and which request it was.
CHANGING = ("server-timing", "x-request-id")
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "maps": ("/v1/models/small/features?layers=stages&pool=avg", {"content": IMAGE}),
    "names with a comma and a space": ("/v1/models/small/features?layers=block%2C1+x", {"content": IMAGE}),
    "numbers": ("/v1/models/small/features/json?layers=stem/relu&pool=max", {"content": IMAGE}),
    "statistics": ("/v1/models/small/statistics", {"content": IMAGE}),
    "a picture": ("/v1/models/small/render?layer=stem/relu", {"content": IMAGE}),
    "a JSON body": ("/v1/models/small/features", {"content": b'{"images": ["x"]}', "headers": JSON}),
    "no such model": ("/v1/models/nothing/features", {"content": IMAGE}),
    "no such parameter": ("/v1/models/small/features?sizes=1", {"content": IMAGE}),
    "a wrong value": ("/v1/models/small/features?pool=min", {"content": IMAGE}),
    "a value twice": ("/v1/models/small/features?pool=avg&pool=max", {"content": IMAGE}),
    "no image": ("/v1/models/small/features", {"content": b"nothing"}),
    "no body": ("/v1/models/small/features", {}),
    "an inference": ("/v2/models/small/infer", {"json": INFERENCE}),
    "an inference of one version": ("/v2/models/small/versions/1/infer", {"json": INFERENCE}),
    "an inference of none": ("/v2/models/small/versions/7/infer", {"json": INFERENCE}),
}
KEPT = f"/v1/images/{hashlib.sha256(IMAGE).hexdigest()}"
OF_A_KEPT_IMAGE = {
    "the image": KEPT,
    "the image with a parameter that there is not": f"{KEPT}?size=1",
    "its maps": f"{KEPT}/features?model=small&layers=stages",
    "its picture": f"{KEPT}/render?model=small&layer=stem/relu",
    "its statistics": f"{KEPT}/statistics?model=small",
    "of no model": f"{KEPT}/features",
    "of another image": f"/v1/images/{'0' * 64}/features?model=small",
}
NOT_DIRECT: dict[str, tuple[str, str]] = {
    "another method": ("PUT", "/v1/models/small/features"),
    "a name that no model can have": ("POST", "/v1/models/.small/features"),
    "a line break after the name": ("POST", "/v1/models/small%0A/features"),
    "more behind it": ("POST", "/v1/models/small/features/"),
    "an image that no image can be": ("GET", "/v1/images/1/features"),
    "a version that is no number": ("POST", "/v2/models/small/versions/one/infer"),
}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    put(tmp_path, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    store = str(tmp_path / "images.sqlite3")
    return make_app(Settings(models=(tmp_path,), image_store=store, graph_optimization="off"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often FastAPI itself was asked, by path."""
    found, call = Counter[str](), FastAPI.__call__

    async def counted(self: FastAPI, scope: Any, receive: Any, send: Any) -> None:
        found[scope["path"]] += 1
        await call(self, scope, receive, send)

    monkeypatch.setattr(FastAPI, "__call__", counted)
    return found


def answer(app: FastAPI, method: str, url: str, below: str = "", **given: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=below)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, below + url, **given)

    return asyncio.run(ask())


@pytest.mark.parametrize("what", REQUESTS)
def test_an_operation_called_directly_answers_as_below_another_applications_path(
    app: FastAPI, asked: Counter[str], what: str
) -> None:
    url, given = REQUESTS[what]
    check(app, asked, "POST", url, **given)


@pytest.mark.parametrize("what", OF_A_KEPT_IMAGE)
def test_so_does_what_is_asked_of_a_kept_image(app: FastAPI, asked: Counter[str], what: str) -> None:
    assert answer(app, "POST", "/v1/images", content=IMAGE).status_code == 201
    for method in ("GET", "HEAD"):
        check(app, asked, method, OF_A_KEPT_IMAGE[what])


def check(app: FastAPI, asked: Counter[str], method: str, url: str, **given: Any) -> None:
    """The same from both; FastAPI is asked for one of them."""
    asked.clear()
    direct = answer(app, method, url, **given)
    assert not asked
    by_fastapi = answer(app, method, url, below="/below", **given)
    assert asked.total() == 1
    assert direct.status_code == by_fastapi.status_code
    assert told(direct) == told(by_fastapi)


@pytest.mark.parametrize("what", NOT_DIRECT)
def test_what_is_not_plainly_such_an_operation_fastapi_answers(
    app: FastAPI, asked: Counter[str], what: str
) -> None:
    refused = answer(app, *NOT_DIRECT[what], content=IMAGE)
    assert asked.total() == 1
    assert refused.status_code in (404, 405, 422)
    assert refused.json()["code"]


def told(found: httpx.Response) -> tuple[dict[str, str], Any]:
    """Headers and content, but for what changes with each request or names its path."""
    headers = {name: value for name, value in found.headers.items() if name not in CHANGING}
    if "problem" not in headers["content-type"]:
        return headers, found.content
    headers.pop("content-length")
    return headers, found.content and found.json() | {"request_id": "", "instance": ""}
