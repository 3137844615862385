"""Models and layers over HTTP."""

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest

from service.app import make_app
from service.settings import Settings
from service.web import schemas
from service.web.routes import models
from tests.builders import encoded, photograph, put, small_cnn
from tests.web.inside import statuses_while_loading

IMAGE = encoded(photograph(40, 30), "PNG")


def test_one_broken_model_does_not_keep_the_others_from_serving(client: httpx.Client) -> None:
    models = {m["name"]: m for m in client.get("/v1/models").json()["models"]}
    assert {name: m["state"] for name, m in models.items()} == {
        "small": "ready",
        "fixed": "ready",
        "reshaping": "ready",
        "versions": "ready",
        "broken": "failed",
    }
    assert "Git LFS" in models["broken"]["reason"]


def test_a_new_version_that_fails_does_not_displace_one_that_serves(client: httpx.Client) -> None:
    models = {m["name"]: m for m in client.get("/v1/models").json()["models"]}
    assert models["versions"]["versions"] == ["1", "2"]
    assert models["versions"]["default_version"] == "1"
    assert "version 2" in models["versions"]["reason"]


def test_get_model_tells_inputs_preprocessing_and_digests(client: httpx.Client, repository: Path) -> None:
    told = client.get("/v1/models/small").json()
    file = (repository / "small/1/model.onnx").read_bytes()
    assert told["digest"] == hashlib.sha256(file).hexdigest()
    assert told["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": [None, 3, None, None], "layout": "NCHW"}
    ]
    assert (told["preprocessing"]["source"], told["preprocessing"]["size"]) == ("model.toml", [32, 32])
    assert (told["layers"], told["stages"], told["provider"]) == (9, ["stem/relu", "block2.add"], "cpu")


def test_without_a_manifest_the_default_recipe_is_told(client: httpx.Client) -> None:
    assert client.get("/v1/models/fixed").json()["preprocessing"]["source"] == "default"


def test_list_layers_is_the_dry_run_of_a_request(client: httpx.Client) -> None:
    told = client.get("/v1/models/small/layers", params={"layers": "stages"}).json()
    assert [row["name"] for row in told["layers"]] == ["stem/relu", "block2.add"]
    assert told["total_bytes"] == (8 * 16 * 16 + 16 * 8 * 8) * 4
    stem, second, third = 8 * 16 * 16 * 27, 16 * 8 * 8 * 72, 16 * 8 * 8 * 144
    assert told["total_macs"] == stem + second + third
    assert told["layers"][0] == {
        "name": "stem/relu",
        "index": 1,
        "node": "stem_relu",
        "op": "Relu",
        "shape": [1, 8, 16, 16],
        "dtype": "float32",
        "layout": "NCHW",
        "channel_axis": 1,
        "batch_axis": 0,
        "channels": 8,
        "reduction": [2, 2],
        "receptive_field": {"size": [3, 3], "start": [-1, -1], "status": "exact"},
        "macs": 0,
        "params": 0,
        "cumulative_macs": stem,
        "bytes_per_image": 8 * 16 * 16 * 4,
        "stage": 0,
        "feature": 0,
        "module": None,
        "has_variable_shape": False,
        "after_activation": True,
        "reads": ["stem/conv"],
    }


def test_a_layer_names_what_it_was_made_from(client: httpx.Client) -> None:
    layers = client.get("/v1/models/small/layers").json()["layers"]
    reads = {layer["name"]: layer["reads"] for layer in layers}
    assert reads["stem/conv"] == ["image"]
    assert reads["block2.add"] == ["block2.conv", "block1.relu"]
    assert reads["logits"] == ["flatten"]


def test_a_long_list_of_layers_is_coded_where_the_client_takes_it(client: httpx.Client) -> None:
    plain = client.get("/v1/models/small/layers", headers={"Accept-Encoding": "identity"})
    coded = client.get("/v1/models/small/layers", headers={"Accept-Encoding": "gzip"})
    assert coded.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert coded.json() == plain.json()


def test_the_size_changes_what_a_layer_costs(client: httpx.Client) -> None:
    def macs(size: str) -> int:
        return client.get("/v1/models/small/layers", params={"size": size}).json()["total_macs"]

    # The classifier's cost does not grow with the picture.
    assert macs("64x64") - 80 == 4 * (macs("32x32") - 80)


@pytest.mark.parametrize(
    ("url", "schema"),
    [
        ("/v1/models", schemas.ModelList),
        ("/v1/models/small", schemas.ModelDescription),
        ("/v1/models/small/layers", schemas.LayerList),
        ("/v1/version", schemas.VersionAnswer),
    ],
)
def test_an_answer_is_what_openapi_says(client: httpx.Client, url: str, schema: type) -> None:
    body = client.get(url).json()
    assert schema.model_validate(body, strict=True, extra="forbid").model_dump(mode="json") == body


def test_every_operation_has_a_stable_name(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    names = [
        operation["operationId"]
        for path, operations in paths.items()
        for operation in operations.values()
        if not path.startswith("/v2")
    ]
    assert sorted(names) == sorted(
        [
            "list_models",
            "get_model",
            "list_layers",
            "extract_features",
            "extract_features_json",
            "livez",
            "readyz",
            "get_version",
            "describe_features",
            "render_features",
            "get_filters",
            "create_image",
            "get_image",
            "delete_image",
            "get_image_features",
            "get_image_picture",
            "get_image_statistics",
            "check_access",
            "load_model",
            "unload_model",
            "upload_model",
            "metrics",
        ]
    )


def test_version_shows_the_limits(client: httpx.Client) -> None:
    told = client.get("/v1/version").json()
    assert told["settings"]["max_body_bytes"] == 32 * 2**20
    assert told["runtime"].startswith("onnxruntime 1.")


@pytest.mark.parametrize(
    "url",
    [
        "/v1/models/slow",
        "/v1/models/slow/layers",
        "/v1/models/slow/filters?layer=stem/relu",
        "/v2/models/slow",
        "/v2/models/slow/versions/1/config",
        "/v2/models/slow/versions/1/stats",
    ],
)
def test_what_is_told_of_a_model_has_a_place_and_a_deadline_while_it_loads(tmp_path: Path, url: str) -> None:
    put(tmp_path, "slow", small_cnn())
    settings = Settings(models=(tmp_path,), image_store="", load="lazy", max_in_flight=2, max_timeout_s=0.3)
    assert statuses_while_loading(make_app(settings), "slow", url) == [503, 503, 503, 504, 504]


def test_a_bug_of_ours_is_a_problem_document_on_every_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that FastAPI calls, and those that are called without it."""
    put(tmp_path, "small", small_cnn())
    app = make_app(Settings(models=(tmp_path,), image_store=""))

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("of ours")

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            assert (await client.get("/v1/models/small")).status_code == 200
            monkeypatch.setattr(models, "model_description", broken)
            monkeypatch.setattr(app.state.pipeline, "answer", broken)
            url = "/v1/models/small/features?layers=stem/relu"
            return [await client.get("/v1/models/small"), await client.post(url, content=IMAGE)]

    try:
        answers = asyncio.run(ask())
    finally:
        app.state.pipeline.close()
    for answer in answers:
        told = answer.json()
        assert (answer.status_code, told["code"]) == (500, "internal")
        assert told["request_id"] == answer.headers["X-Request-Id"]
        assert "of ours" not in told["detail"]
