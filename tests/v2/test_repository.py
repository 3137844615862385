"""The repository's index, loading and unloading."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders import put, small_cnn
from tests.servers import managed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put(folder, "m", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    return folder


@pytest.fixture(scope="module")
def admin(models: Path) -> Iterator[httpx.Client]:
    with managed("--models", str(models)) as server, server.client() as client:
        yield client


def states(client: httpx.Client, body: bytes = b"") -> list[tuple[str, str, str]]:
    rows = client.post("/v2/repository/index", content=body).json()
    return [(row["name"], row["version"], row["state"]) for row in rows]


def test_a_model_is_unloaded_and_loaded_again_with_its_new_version(
    admin: httpx.Client, models: Path, jpeg: bytes
) -> None:
    ask = "/v1/models/m/features?layers=logits"
    assert admin.post("/v2/repository/models/m/unload").status_code == 200
    refusal = admin.post(ask, content=jpeg)
    assert (refusal.status_code, refusal.json()["code"]) == (503, "not-ready")
    assert states(admin) == [("m", "1", "UNAVAILABLE")]
    put(models, "m", small_cnn(1, 32, 32), "2")
    assert admin.post("/v2/repository/models/m/load", content=b"{}").status_code == 200
    assert admin.post(ask, content=jpeg).headers["Featuremaps-Model"] == "m/2"
    assert states(admin, b'{"ready": true}') == [("m", "2", "READY")]


def test_overrides_of_a_models_files_are_refused(admin: httpx.Client) -> None:
    body = {"parameters": {"file:1/model.onnx": "AAAA", "config": "{}"}}
    refusal = admin.post("/v2/repository/models/m/load", json=body)
    assert (refusal.status_code, refusal.json()["code"]) == (422, "invalid-parameter")


@pytest.mark.parametrize("what", ["load", "unload"])
def test_without_the_setting_nobody_changes_what_is_served(client: httpx.Client, what: str) -> None:
    refusal = client.post(f"/v2/repository/models/small/{what}")
    assert (refusal.status_code, refusal.json()["code"]) == (403, "forbidden")
    assert client.get("/v1/models/small").status_code == 200


@pytest.mark.parametrize("what", ["load", "unload"])
def test_an_unknown_model_is_neither_loaded_nor_unloaded(admin: httpx.Client, what: str) -> None:
    assert admin.post(f"/v2/repository/models/absent/{what}").json()["code"] == "model-not-found"


@pytest.mark.parametrize("body", [b"[", b"[]", b'{"reddy": true}', b'{"ready": "yes"}', b"[" * 10_000])
def test_a_body_that_is_no_such_question_is_refused(client: httpx.Client, body: bytes) -> None:
    assert 400 <= client.post("/v2/repository/index", content=body).status_code < 500
