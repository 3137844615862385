"""Operations that FastAPI only describes: plain routes, also below another application's path."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.app import make_app
from service.settings import Settings
from service.web.keys import make_key
from tests.builders import encoded, photograph, put, small_cnn

IMAGE = encoded(photograph(64, 48), "PNG")
KEPT = f"/v1/images/{hashlib.sha256(IMAGE).hexdigest()}"
ZEROS = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.0] * 3 * 32 * 32}
INFERENCE = {"inputs": [ZEROS], "outputs": [{"name": "logits"}]}
# Status, method, URL, body.
REQUESTS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "maps": (200, "POST", "/v1/models/small/features?layers=stages&pool=avg", {"content": IMAGE}),
    "numbers": (200, "POST", "/v1/models/small/features/json?layers=stem/relu&pool=max", {"content": IMAGE}),
    "statistics": (200, "POST", "/v1/models/small/statistics", {"content": IMAGE}),
    "a picture": (200, "POST", "/v1/models/small/render?layer=stem/relu", {"content": IMAGE}),
    "an inference": (200, "POST", "/v2/models/small/infer", {"json": INFERENCE}),
    "an inference of one version": (200, "POST", "/v2/models/small/versions/1/infer", {"json": INFERENCE}),
    "a kept image": (200, "GET", KEPT, {}),
    "its head": (200, "HEAD", KEPT, {}),
    "its maps": (200, "GET", f"{KEPT}/features?model=small&layers=stages", {}),
    "its picture": (200, "GET", f"{KEPT}/render?model=small&layer=stem/relu", {}),
    "its statistics": (200, "GET", f"{KEPT}/statistics?model=small", {}),
    "no such model": (404, "POST", "/v1/models/nothing/features", {"content": IMAGE}),
    "a name that no model can have": (422, "POST", "/v1/models/.small/features", {"content": IMAGE}),
    "a line break after the name": (422, "POST", "/v1/models/small%0A/features", {"content": IMAGE}),
    "an image that no image can be": (422, "GET", "/v1/images/1/features?model=small", {}),
    "a version that is no number": (422, "POST", "/v2/models/small/versions/one/infer", {"json": INFERENCE}),
    "no such parameter": (422, "POST", "/v1/models/small/features?sizes=1", {"content": IMAGE}),
    "a parameter of an operation without any": (422, "GET", f"{KEPT}?size=1", {}),
    "another method": (405, "PUT", "/v1/models/small/features", {"content": IMAGE}),
    "more behind it": (404, "POST", "/v1/models/small/features/", {"content": IMAGE}),
}
# What a client without a key, for nothing that exists, or too often gets; its body would be too long as well.
REFUSED: dict[int, tuple[str, str]] = {
    401: ("/v1/models/small/features", "Bearer nobody"),
    404: ("/v1/nothing", "Bearer {token}"),
    429: ("/v1/models/small/features", "Bearer {token}"),
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    put(tmp_path, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    return Settings(models=(tmp_path,), image_store=str(tmp_path / "images.sqlite3"))


def answer(app: FastAPI, method: str, url: str, below: str = "", **given: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=below)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, below + url, **given)

    return asyncio.run(ask())


@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize("below", ["", "/below"])
def test_an_operation_answers_below_any_path_without_fastapi(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, what: str, below: str
) -> None:
    app = make_app(settings)
    status, method, url, given = REQUESTS[what]
    assert answer(app, "POST", "/v1/images", content=IMAGE).status_code == 201

    async def handle(self: APIRoute, *_: object) -> None:
        raise AssertionError(f"FastAPI answered {self.path}")

    monkeypatch.setattr(APIRoute, "handle", handle)
    found = answer(app, method, url, below, **given)
    assert found.status_code == status
    if status != 200:
        assert found.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_stays_itself_whatever_content_length_says(settings: Settings, status: int) -> None:
    token, entry = make_key("ann", "infer")
    limited = settings.model_copy(
        update={"keys": (entry,), "rate_limit": "1/hour" if status == 429 else "", "max_body_bytes": 10}
    )
    app = make_app(limited)
    url, key = REFUSED[status]
    given: dict[str, Any] = {"content": bytes(1000), "headers": {"Authorization": key.format(token=token)}}
    answers = [answer(app, "POST", url, **given).status_code for _ in range(2)]
    assert answers[-1] == status
