"""Every layer of the eleven real models, over HTTP, against the uncut graph."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.builders import npy
from tests.oracles import UncutGraph
from tests.servers import serving

# Exposing a tensor stops a fusion, so with optimisation on the last bits depend on what is asked.
TOLERANCE = 1e-4
SAMPLE_EVERY = 7


@pytest.fixture(scope="module", params=["off", "all"])
def optimised(request: pytest.FixtureRequest, test_data: Path) -> Iterator[tuple[str, httpx.Client]]:
    models = [f"--models={path}" for path in sorted((test_data / "models/good").glob("*.onnx"))]
    with serving("--graph-optimization", request.param, *models) as server, server.client() as client:
        yield request.param, client


def names(test_data: Path) -> list[str]:
    return sorted(path.stem for path in (test_data / "models/good").glob("*.onnx"))


def ask(client: httpx.Client, model: str, tensor: np.ndarray, layers: list[str]) -> dict[str, np.ndarray]:
    answer = client.post(
        f"/v1/models/{model}/features",
        params={"layers": layers, "timeout_s": 60},
        content=npy(tensor),
        headers={"Content-Type": "application/x-npy"},
    )
    assert answer.status_code == 200, answer.text
    return dict(np.load(io.BytesIO(answer.content), allow_pickle=False))


def seeded(client: httpx.Client, path: Path) -> tuple[str, np.ndarray]:
    """Noise in the range of values that the model was made for, as its manifest tells."""
    (spec,) = client.get(f"/v1/models/{path.stem}").json()["inputs"]
    shape = [size or 1 for size in spec["shape"]]
    rows = json.loads((path.parents[1] / "manifest.json").read_text())
    recipe = next(row["pre"] for row in rows if row["file"] == f"good/{path.name}")
    scale = 255 if "0..255" in recipe else 1
    return spec["name"], scale * np.random.default_rng(7).random(shape, np.float32)


def differences(client: httpx.Client, path: Path, optimised: str, every: int) -> Iterator[tuple[str, float]]:
    """Each layer's largest difference, in units of its largest value."""
    model = path.stem
    name, tensor = seeded(client, path)
    layers = [row["name"] for row in client.get(f"/v1/models/{model}/layers").json()["layers"]]
    fusions_change_arithmetic = "qdq" in model and optimised == "all"
    whole = None if fusions_change_arithmetic else UncutGraph(path, layers).run({name: tensor})
    for layer in layers[::every]:
        expected = (
            UncutGraph(path, [layer], optimised=True).run({name: tensor}) if whole is None else whole
        )[layer]
        actual = ask(client, model, tensor, [layer])[layer]
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), layer
        scale = float(np.abs(expected).max()) or 1.0
        yield layer, float(np.abs(actual.astype(float) - expected).max()) / scale


def check_all(test_data: Path, optimised: tuple[str, httpx.Client], every: int) -> tuple[int, float, str]:
    setting, client = optimised
    count, worst, where = 0, 0.0, ""
    for path in sorted((test_data / "models/good").glob("*.onnx")):
        for layer, difference in differences(client, path, setting, every):
            count += 1
            if difference > worst:
                worst, where = difference, f"{path.stem} {layer}"
            assert difference <= (0 if setting == "off" else TOLERANCE), (path.stem, layer)
    return count, worst, where


def test_a_sample_of_all_layers_equals_the_uncut_graph(
    optimised: tuple[str, httpx.Client], test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = report(capsys, optimised, *check_all(test_data, optimised, SAMPLE_EVERY))
    assert count > 1000 / SAMPLE_EVERY


@pytest.mark.slow
def test_every_layer_equals_the_uncut_graph(
    optimised: tuple[str, httpx.Client], test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(capsys, optimised, *check_all(test_data, optimised, 1)) > 1000


def report(
    capsys: pytest.CaptureFixture[str],
    optimised: tuple[str, httpx.Client],
    count: int,
    worst: float,
    where: str,
) -> int:
    with capsys.disabled():
        print(f"\n{count} layers, optimisation {optimised[0]}: worst difference {worst:.3g} {where}")
    return count


def test_metadata_tell_the_shapes_that_a_file_declares_where_inference_ends(test_data: Path) -> None:
    models = test_data / "models" / "good"
    with serving("--models", str(models / "style_candy.onnx"), "--load", "lazy") as server:
        told = httpx.get(f"{server.url}/v2/models/style_candy", trust_env=False, timeout=120).json()
    assert told["outputs"] == [{"name": "outputImage", "datatype": "FP32", "shape": [-1, 3, 720, 720]}]
