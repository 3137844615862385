"""`extract_features` over real HTTP: every body kind, the answers, what they say of themselves."""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zstandard
from safetensors.numpy import load as load_safetensors

from tests.builders import encoded, npy, photograph
from tests.oracles import UncutGraph

URL = "/v1/models/small/features"
STAGES = ["stem/relu", "block2.add"]


def npz(answer: httpx.Response) -> dict[str, np.ndarray]:
    assert answer.status_code == 200, answer.text
    return dict(np.load(io.BytesIO(answer.content), allow_pickle=False))


def metadata(answer: httpx.Response) -> dict[str, Any]:
    return json.loads(npz(answer)["__metadata__"].tobytes())


def post(
    client: httpx.Client, body: bytes, url: str = URL, kind: str = "image/jpeg", **query: Any
) -> httpx.Response:
    return client.post(url, params=query, content=body, headers={"Content-Type": kind})


@pytest.fixture(scope="module")
def pixels(client: httpx.Client, jpeg: bytes) -> np.ndarray:
    """The tensor that the network saw."""
    return npz(post(client, jpeg, layers="image"))["image"]


def test_a_photograph_gives_the_stages_as_npz(client: httpx.Client, jpeg: bytes) -> None:
    maps = npz(post(client, jpeg))
    assert {name: value.shape for name, value in maps.items() if name != "__metadata__"} == {
        "stem/relu": (1, 8, 16, 16),
        "block2.add": (1, 16, 8, 8),
    }


def test_the_maps_equal_the_uncut_graphs(
    client: httpx.Client, jpeg: bytes, pixels: np.ndarray, repository: Path
) -> None:
    names = ["stem/relu", "block,1", "block2.add", "logits"]
    maps = npz(post(client, jpeg, layers=names))
    expected = UncutGraph(repository / "small/1/model.onnx", names).run({"image": pixels})
    for name in names:
        np.testing.assert_allclose(maps[name], expected[name], rtol=1e-5, atol=1e-6)


def test_the_graphs_input_by_its_name_is_what_the_network_saw(pixels: np.ndarray, jpeg: bytes) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    expected = (np.asarray(picture, np.float32) / 255).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(pixels, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "application/octet-stream", "image/png", "application/x-www-form-urlencoded"]
)
def test_the_content_decides_and_not_the_label(client: httpx.Client, jpeg: bytes, kind: str) -> None:
    assert list(npz(post(client, jpeg, kind=kind, layers="logits"))) == ["logits", "__metadata__"]


def test_several_parts_lie_along_the_batch_axis_in_the_order_sent(client: httpx.Client) -> None:
    images = [encoded(photograph(seed=seed), "PNG") for seed in range(3)]
    files = [("image", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]
    together = npz(client.post(URL, files=files, params={"layers": "stages,logits"}))
    for i, image in enumerate(images):
        alone = npz(post(client, image, layers="stages,logits"))
        for name in (*STAGES, "logits"):
            np.testing.assert_allclose(together[name][i : i + 1], alone[name], rtol=1e-5, atol=1e-6)


def test_json_with_base64_takes_the_query_parameters_too(client: httpx.Client, jpeg: bytes) -> None:
    body = {
        "images": [base64.b64encode(jpeg).decode()],
        "layers": ["logits", "stem/relu"],
        "dtype": "float16",
    }
    maps = npz(client.post(URL, json=body))
    assert {name: str(v.dtype) for name, v in maps.items()} == {
        "stem/relu": "float16",
        "logits": "float16",
        "__metadata__": "uint8",
    }


def test_a_parameter_in_both_places_is_refused(client: httpx.Client, jpeg: bytes) -> None:
    body = {"images": [base64.b64encode(jpeg).decode()], "layers": ["logits"]}
    answer = client.post(URL, json=body, params={"layers": "stages"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed-request")


@pytest.mark.parametrize("batched", [True, False])
def test_a_ready_tensor_skips_preprocessing(
    client: httpx.Client, pixels: np.ndarray, jpeg: bytes, batched: bool
) -> None:
    body = npy(pixels if batched else pixels[0])
    ready = npz(post(client, body, kind="application/x-npy", layers="logits"))
    assert np.array_equal(ready["logits"], npz(post(client, jpeg, layers="logits"))["logits"])


def test_a_ready_tensor_of_several_images_gives_as_many_maps(client: httpx.Client) -> None:
    body = npy(np.zeros((4, 3, 24, 40), np.float32))
    maps = npz(post(client, body, kind="application/x-npy", layers="stem/relu,logits"))
    assert (maps["stem/relu"].shape, maps["logits"].shape) == ((4, 8, 12, 20), (4, 5))


@pytest.mark.parametrize(
    ("array", "given"),
    [
        (np.zeros((1, 3, 32, 32), np.float64), "float64"),
        (np.zeros((1, 4, 32, 32), np.float32), "4"),
        (np.zeros((3, 32), np.float32), "32"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_what_would(
    client: httpx.Client, array: np.ndarray, given: str
) -> None:
    answer = post(client, npy(array), kind="application/x-npy")
    assert (answer.status_code, answer.json()["code"]) == (422, "shape-mismatch")
    assert given in answer.json()["detail"]
    assert "3" in answer.json()["detail"]


def test_safetensors_and_npy_hold_the_same_numbers(client: httpx.Client, jpeg: bytes) -> None:
    expected = npz(post(client, jpeg, layers="logits"))["logits"]
    tensors = load_safetensors(post(client, jpeg, layers="logits", format="safetensors").content)
    plain = np.load(io.BytesIO(post(client, jpeg, layers="logits", format="npy").content))
    assert np.array_equal(tensors["logits"], expected)
    assert np.array_equal(plain, expected)


def test_the_size_of_a_dynamic_input_can_be_chosen(client: httpx.Client, jpeg: bytes) -> None:
    assert npz(post(client, jpeg, size="64x48", layers="stem/relu"))["stem/relu"].shape == (1, 8, 32, 24)


def test_what_was_done_travels_with_the_bytes(
    client: httpx.Client, jpeg: bytes, pixels: np.ndarray, repository: Path
) -> None:
    told = metadata(post(client, jpeg, dtype="float16", layers="logits"))
    file = (repository / "small/1/model.onnx").read_bytes()
    assert told["digest"] == hashlib.sha256(file).hexdigest()
    assert told["input_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert told["preprocessing"]["size"] == [32, 32]
    assert told["error_bound"]["logits"]["relative"] == 2**-11
    assert (told["name"], told["version"], told["layers"], told["images"]) == ("small", "1", ["logits"], 1)


def test_the_safetensors_metadata_says_the_same(client: httpx.Client, jpeg: bytes) -> None:
    body = post(client, jpeg, layers="logits", format="safetensors").content
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    assert json.loads(header["__metadata__"]["featuremaps"]) == metadata(post(client, jpeg, layers="logits"))


def test_a_ready_tensor_was_not_preprocessed(client: httpx.Client, pixels: np.ndarray) -> None:
    assert metadata(post(client, npy(pixels), kind="application/x-npy"))["preprocessing"] is None


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
def test_the_answer_is_coded_where_the_client_takes_it(
    client: httpx.Client, jpeg: bytes, coding: str
) -> None:
    plain = post(client, jpeg, format="npy", layers="stem/relu", size="256x256").content
    with client.stream(
        "POST",
        URL,
        params={"format": "npy", "layers": "stem/relu", "size": "256x256"},
        content=jpeg,
        headers={"Accept-Encoding": coding},
    ) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["Content-Encoding"] == coding
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert len(raw) < 0.9 * len(plain)
    unpacked = (
        zstandard.ZstdDecompressor().decompress(raw)
        if coding == "zstd"
        else __import__("gzip").decompress(raw)
    )
    assert unpacked == plain


def test_an_answer_says_which_model_gave_it_and_how_long_each_stage_took(
    client: httpx.Client, jpeg: bytes
) -> None:
    headers = post(client, jpeg).headers
    assert headers["Featuremaps-Model"] == "small/1"
    assert len(headers["Featuremaps-Model-Digest"]) == 64
    stages = [part.split(";")[0] for part in headers["Server-Timing"].split(", ")]
    assert stages == ["decode", "preprocess", "queue", "run", "reduce", "encode", "compress"]
    assert headers["Content-Disposition"] == 'attachment; filename="small-layers.npz"'


def test_a_files_name_is_safe_whatever_the_layer_is_called(client: httpx.Client, jpeg: bytes) -> None:
    answer = post(client, jpeg, layers="stem/relu", format="npy")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="small-stem-relu.npy"'


def test_json_numbers_are_an_operation_of_their_own(client: httpx.Client, jpeg: bytes) -> None:
    answer = post(client, jpeg, URL + "/json", layers="logits")
    (written,) = answer.json()["layers"]
    expected = npz(post(client, jpeg, layers="logits"))["logits"]
    assert answer.headers["Content-Type"] == "application/json"
    assert np.array_equal(np.array(written["data"], np.float32).reshape(written["shape"]), expected)


def test_json_numbers_are_capped_before_anything_runs(client: httpx.Client, jpeg: bytes) -> None:
    answer = post(client, jpeg, URL + "/json", layers="stem/relu", size="1024x1024")
    assert (answer.status_code, answer.json()["code"]) == (413, "answer-too-large")


def test_an_answer_over_the_limit_is_refused_with_its_exact_size(client: httpx.Client, jpeg: bytes) -> None:
    answer = post(client, jpeg, layers="stem/conv,stem/relu,block2.add", size="2000x2000")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (413, "answer-too-large")
    assert problem["actual"] == (2 * 8 * 1000 * 1000 + 16 * 500 * 500) * 4
    assert "float16" in problem["detail"]


def test_the_same_request_gives_the_same_bytes(client: httpx.Client, jpeg: bytes) -> None:
    assert post(client, jpeg).content == post(client, jpeg).content


def test_a_fixed_batch_whose_reshape_holds_it_runs_one_by_one(client: httpx.Client) -> None:
    tensors = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    url = "/v1/models/reshaping/features"
    singles = [
        npz(post(client, npy(one), url, "application/x-npy", layers="vector"))["vector"] for one in tensors
    ]
    files = [("image", encoded(photograph(seed=s), "PNG")) for s in range(3)]
    together = npz(client.post(url, files=files, params={"layers": "vector"}))["vector"]
    assert together.shape == (3, 8)
    assert len({one.tobytes() for one in singles}) == 3


def test_a_fixed_batch_that_can_be_freed_gives_what_single_runs_give(client: httpx.Client) -> None:
    files = [("image", encoded(photograph(seed=s), "PNG")) for s in range(2)]
    together = npz(client.post("/v1/models/fixed/features", files=files, params={"layers": "all"}))
    for i, (_, image) in enumerate(files):
        alone = npz(post(client, image, "/v1/models/fixed/features", layers="all"))
        for name in alone.keys() - {"__metadata__"}:
            np.testing.assert_allclose(together[name][i : i + 1], alone[name], rtol=1e-5, atol=1e-6)


def test_the_highest_version_that_loads_is_served(client: httpx.Client, jpeg: bytes) -> None:
    assert post(client, jpeg, "/v1/models/versions/features").headers["Featuremaps-Model"] == "versions/1"
