"""Models of other channels, types and inputs than a picture classifier's, over HTTP."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from tests.builders import encoded, model, npy, photograph, put, weight
from tests.oracles import UncutGraph
from tests.servers import serving

node = helper.make_node


def convolved(channels: int) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["conv"]), node("Relu", ["conv"], ["relu"])]
    return model(nodes, {"x": [1, channels, 16, 16]}, ["relu"], [weight("w", 5, channels, 3, 3)])


def typed() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w"], ["conv"]),
        node("Cast", ["conv"], ["half"], to=TensorProto.BFLOAT16),
        node("Cast", ["conv"], ["text"], to=TensorProto.STRING),
        node("Relu", ["conv"], ["relu"]),
    ]
    return model(nodes, {"x": [1, 3, 16, 16]}, ["relu", "text"], [weight("w", 5, 3, 3, 3)])


def scaled() -> onnx.ModelProto:
    """A second input that only the last layer reads."""
    nodes = [node("Conv", ["x", "w"], ["conv"]), node("Mul", ["conv", "gain"], ["out"])]
    return model(nodes, {"x": [1, 3, 16, 16], "gain": [1]}, ["out"], [weight("w", 5, 3, 3, 3)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    put(folder, "four", convolved(4))
    put(folder, "rgba", convolved(4), toml='[input]\ncolor = "rgba"\n')
    put(folder, "pair", convolved(6), toml="[input]\nimages = 2\n")
    put(folder, "typed", typed())
    put(folder, "scaled", scaled())
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving("--models", str(folder), "--graph-optimization", "off") as server, server.client() as client:
        yield client


def maps(answer: httpx.Response) -> dict[str, np.ndarray]:
    assert answer.status_code == 200, answer.text
    return dict(np.load(io.BytesIO(answer.content), allow_pickle=False))


def receipt(answer: httpx.Response) -> dict[str, object]:
    return dict(json.loads(maps(answer)["__metadata__"].tobytes()))


def test_four_channels_take_tensors_and_refuse_images_with_what_to_do(client: httpx.Client) -> None:
    tensor = npy(np.ones((1, 4, 16, 16), np.float32))
    sent = client.post(
        "/v1/models/four/features", content=tensor, headers={"Content-Type": "application/x-npy"}
    )
    assert maps(sent)["relu"].shape == (1, 5, 14, 14)
    refusal = client.post("/v1/models/four/features", content=encoded(photograph(16, 16), "PNG")).json()
    assert (refusal["status"], refusal["code"]) == (422, "images-not-taken")
    assert "color" in refusal["detail"]


def test_transparency_is_the_fourth_channel(client: httpx.Client, folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    answer = client.post(
        "/v1/models/rgba/features",
        params={"layers": ["x", "relu"]},
        content=encoded(Image.fromarray(pixels), "PNG"),
    )
    expected = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    assert np.allclose(maps(answer)["x"], expected, atol=1e-7)
    whole = UncutGraph(folder / "rgba/1/model.onnx", ["relu"]).run({"x": maps(answer)["x"]})
    assert np.array_equal(maps(answer)["relu"], whole["relu"])


def test_an_opaque_image_has_the_highest_fourth_channel(client: httpx.Client) -> None:
    image = encoded(photograph(16, 16), "PNG")
    answer = client.post("/v1/models/rgba/features", params={"layers": "x"}, content=image)
    assert (maps(answer)["x"][:, 3] == 1).all()


def test_several_images_fill_the_channels_one_after_the_other(client: httpx.Client) -> None:
    images = [encoded(photograph(16, 16, seed), "PNG") for seed in range(4)]
    parts = [("image", ("a.png", image, "image/png")) for image in images]
    answer = client.post("/v1/models/pair/features", params={"layers": "x"}, files=parts)
    pixels = [np.asarray(photograph(16, 16, seed)).transpose(2, 0, 1) / 255 for seed in range(4)]
    expected = np.stack([np.concatenate(pixels[:2]), np.concatenate(pixels[2:])])
    assert np.allclose(maps(answer)["x"], expected, atol=1e-7)
    refusal = client.post("/v1/models/pair/features", files=parts[:3]).json()
    assert (refusal["status"], refusal["code"], refusal["limit"]) == (422, "shape-mismatch", 2)


def test_text_is_left_out_and_named_and_bfloat16_is_widened(client: httpx.Client) -> None:
    image = encoded(photograph(16, 16), "PNG")
    answer = client.post("/v1/models/typed/features", params={"layers": "all"}, content=image)
    assert set(maps(answer)) == {"conv", "half", "relu", "__metadata__"}
    assert maps(answer)["half"].dtype == np.float32
    assert list(receipt(answer)["left_out"]) == ["text"]
    for operation in ("statistics", "features/json"):
        told = client.post(f"/v1/models/typed/{operation}", params={"layers": "all"}, content=image).json()
        assert list(told["left_out"]) == ["text"]


def test_text_that_is_asked_for_by_its_name_is_refused(client: httpx.Client) -> None:
    image = encoded(photograph(16, 16), "PNG")
    refusal = client.post("/v1/models/typed/features", params={"layers": ["relu", "text"]}, content=image)
    assert (refusal.status_code, refusal.json()["code"]) == (422, "invalid-parameter")


def test_layers_that_do_not_read_a_further_input_need_no_value_for_it(client: httpx.Client) -> None:
    image = encoded(photograph(16, 16), "PNG")
    answer = client.post("/v1/models/scaled/features", params={"layers": "all"}, content=image)
    assert set(maps(answer)) == {"conv", "__metadata__"}
    assert list(receipt(answer)["left_out"]) == ["out"]
    refusal = client.post("/v1/models/scaled/features", params={"layers": "out"}, content=image).json()
    assert (refusal["code"], "'gain'" in refusal["detail"]) == ("model-needs-constants", True)


def infer(client: httpx.Client, output: str, **inputs: np.ndarray) -> httpx.Response:
    sent = [
        {"name": n, "shape": v.shape, "datatype": "FP32", "data": v.ravel().tolist()}
        for n, v in inputs.items()
    ]
    asked = {"inputs": sent, "outputs": [{"name": output}]}
    return client.post("/v2/models/scaled/infer", json=asked)


def test_v2_demands_only_the_inputs_that_its_outputs_read(client: httpx.Client) -> None:
    x, gain = np.ones((1, 3, 16, 16), np.float32), np.array([2], np.float32)
    assert infer(client, "conv", x=x).status_code == 200
    assert infer(client, "out", x=x, gain=gain).status_code == 200
    refusal = infer(client, "out", x=x)
    assert (refusal.status_code, "'gain'" in refusal.json()["error"]) == (400, True)
    assert infer(client, "out", gain=gain).status_code == 400


def test_a_guessed_size_is_told(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["conv"])]
    put(tmp_path, "free", model(nodes, {"x": ["n", 3, "h", "w"]}, ["conv"], [weight("w", 5, 3, 3, 3)]))
    with serving("--models", str(tmp_path)) as server, server.client() as client:
        assert client.get("/v1/models/free").json()["size_source"] == "guessed"
        answer = client.post("/v1/models/free/features", content=encoded(photograph(40, 30), "PNG"))
        assert receipt(answer)["size_source"] == "guessed"
