"""Shapes that clients choose: rows of further inputs, and shapes on which a model does not run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from tests.builders import encoded, model, photograph, put
from tests.oracles import UncutGraph
from tests.servers import serving

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 3, 8, 8)).astype(np.float32)
ROWS = RNG.standard_normal((3, 5)).astype(np.float32)


def stored(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def scaled() -> ModelProto:
    """Channels of a convolution times what a row of a second input says of them."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"]),
        helper.make_node("Gemm", ["row", "g"], ["gains"]),
        helper.make_node("Unsqueeze", ["gains", "axes"], ["wide"]),
        helper.make_node("Mul", ["conv", "wide"], ["product"]),
    ]
    weights = [stored("w", 4, 3, 5, 5), stored("g", 5, 4), numpy_helper.from_array(np.array([2, 3]), "axes")]
    return model(nodes, {"image": ["n", 3, "h", "w"], "row": ["n", 5]}, ["product"], weights)


def added() -> ModelProto:
    """Takes no images: rows of four, widened, and the sum with as many others."""
    nodes = [
        helper.make_node("Gemm", ["a", "g"], ["wide"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
    ]
    return model(nodes, {"a": ["n", 4], "b": ["m", 4]}, ["wide", "sum"], [stored("g", 4, 1000)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    put(folder, "scaled", scaled(), toml="[input]\nsize = [8, 8]\n[constants]\nrow = [[1, 1, 1, 1, 1]]\n")
    put(folder, "added", added())
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    limits = ("--max-map-bytes", "1000000", "--graph-optimization", "off")
    with serving("--models", str(folder), *limits) as server, server.client() as client:
        yield client


def infer(client: httpx.Client, name: str, output: str, **inputs: np.ndarray) -> httpx.Response:
    sent = [
        {"name": n, "shape": v.shape, "datatype": "FP32", "data": v.ravel().tolist()}
        for n, v in inputs.items()
    ]
    asked = {"inputs": sent, "outputs": [{"name": output}]}
    return client.post(f"/v2/models/{name}/infer", json=asked)


@pytest.mark.parametrize("rows", [3, 1])
def test_with_several_images_a_further_input_has_a_row_for_each_or_one_for_all(
    client: httpx.Client, folder: Path, rows: int
) -> None:
    uncut = UncutGraph(folder / "scaled" / "1" / "model.onnx", ["product"])
    answer = infer(client, "scaled", "product", image=IMAGES, row=ROWS[:rows])
    (output,) = answer.json()["outputs"]
    found = np.array(output["data"], np.float32).reshape(output["shape"])
    expected = uncut.run({"image": IMAGES, "row": ROWS[:rows]})["product"]
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_one_image_takes_as_many_rows_as_the_graph_does(client: httpx.Client, folder: Path) -> None:
    uncut = UncutGraph(folder / "scaled" / "1" / "model.onnx", ["product"])
    (output,) = infer(client, "scaled", "product", image=IMAGES[:1], row=ROWS).json()["outputs"]
    expected = uncut.run({"image": IMAGES[:1], "row": ROWS})["product"]
    assert np.array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), expected)


@pytest.mark.parametrize(("images", "rows"), [(3, 2), (2, 3), (3, 0), (1, 0)])
def test_another_number_of_rows_is_refused(client: httpx.Client, images: int, rows: int) -> None:
    refusal = infer(client, "scaled", "product", image=IMAGES[:images], row=ROWS[:rows])
    assert (refusal.status_code, refusal.json()["code"]) == (422, "shape-mismatch")
    assert "'row'" in refusal.json()["detail"]


def test_rows_count_among_the_bytes_of_a_map(client: httpx.Client) -> None:
    """4000 rows of 4 x 4 x 4 floats are a megabyte and more, whatever is left of them in the end."""
    rows = np.ones((4000, 5), np.float32)
    asked = {
        "inputs": [
            {"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": IMAGES[0].ravel().tolist()},
            {"name": "row", "shape": [4000, 5], "datatype": "FP32", "data": rows.ravel().tolist()},
        ],
        "outputs": [{"name": "product", "parameters": {"channels": "0", "pool": "avg"}}],
    }
    refusal = client.post("/v2/models/scaled/infer", json=asked)
    assert (refusal.status_code, refusal.json()["code"]) == (413, "answer-too-large")
    assert refusal.json()["actual"] == 4000 * 4 * 4 * 4 * 4


def test_rows_of_a_model_that_takes_no_images_count_too(client: httpx.Client) -> None:
    some, many = np.ones((2, 4), np.float32), np.ones((300, 4), np.float32)
    assert infer(client, "added", "wide", a=some, b=some).status_code == 200
    refusal = infer(client, "added", "wide", a=many, b=many)
    assert (refusal.status_code, refusal.json()["code"]) == (413, "answer-too-large")
    assert refusal.json()["actual"] == 300 * 1000 * 4


def test_inputs_that_do_not_go_together_are_the_callers_mistake(client: httpx.Client) -> None:
    refusal = infer(client, "added", "sum", a=np.ones((2, 4), np.float32), b=np.ones((3, 4), np.float32))
    assert (refusal.status_code, refusal.json()["code"]) == (422, "shape-mismatch")
    assert "'a' of shape [2, 4], 'b' of shape [3, 4]" in refusal.json()["detail"]
    assert client.get("/v1/models/added").status_code == 200


def test_a_size_on_which_the_network_does_not_run_is_the_callers_mistake(client: httpx.Client) -> None:
    image = encoded(photograph(20, 20), "PNG")
    url = "/v1/models/scaled/features?layers=product"
    assert client.post(url, content=image).status_code == 200
    kept = client.post("/v1/images", content=image).json()["id"]
    refusals = [
        client.post(f"{url}&size=4x4", content=image),
        client.get(f"/v1/images/{kept}/features?model=scaled&layers=product&size=4x4"),
    ]
    for refusal in refusals:
        assert (refusal.status_code, refusal.json()["code"]) == (422, "shape-mismatch")
        assert "'image' of shape [1, 3, 4, 4]" in refusal.json()["detail"]
        assert refusal.json()["allowed"] == {"image": [1, 3, 8, 8]}
