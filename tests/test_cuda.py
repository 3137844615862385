"""On a GPU, with onnxruntime-gpu instead of onnxruntime: `python -m pytest -m cuda`."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.resnet import random_resnet50, relus
from service.engine.loaded import LoadedModel
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.parameters import Reduction
from service.syntax import Channels
from tests.builders import npy, put, small_cnn
from tests.oracles import UncutGraph
from tests.servers import serving

# Other orders of summation, with float32's digits throughout: 3e-6 was seen on an H200.
TOLERANCE = 2e-5

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu and a GPU"
    ),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_resnet50(tmp_path_factory.mktemp("resnet50") / "resnet50.onnx")


@pytest.fixture(scope="module")
def model(file: Path) -> LoadedModel:
    return load("m", "1", file, file.parent, Runtime(provider="cuda"), PlanCache(4 << 30))


@pytest.mark.parametrize("images", [1, 5])
def test_layers_on_the_gpu_equal_the_uncut_graph_on_the_cpu(
    file: Path, model: LoadedModel, images: int
) -> None:
    x = np.random.default_rng(0).random((images, 3, 224, 224), np.float32)
    names = [relus(file)[i] for i in (1, 20, -1)]
    found = model.run(x, model.layers().select(names))
    for row in range(images):
        expected = UncutGraph(file, names).run({"gpu_0/data_0": x[row : row + 1]})
        for name in names:
            largest = np.abs(expected[name]).max()
            assert np.abs(found[name][row : row + 1] - expected[name]).max() <= TOLERANCE * largest


def test_different_layers_share_a_batch_on_the_gpu(file: Path, model: LoadedModel) -> None:
    rng = np.random.default_rng(0)
    jobs = [
        (rng.random((1, 3, 224, 224), np.float32), [model.layers().by_name[relus(file)[i]]], {})
        for i in (1, 20, -1, 30, -1)
    ]
    for outcome, (x, layers, _) in zip(model.run_together(jobs), jobs, strict=True):
        assert isinstance(outcome, dict)
        alone = model.run(x, layers)
        name = layers[0].name
        assert np.abs(outcome[name] - alone[name]).max() <= TOLERANCE * np.abs(alone[name]).max()


@pytest.mark.parametrize("images", [1, 3])
def test_channels_and_averages_on_the_gpu_are_numpys(file: Path, model: LoadedModel, images: int) -> None:
    x = np.random.default_rng(0).random((images, 3, 224, 224), np.float32)
    (layer,) = model.layers().select([relus(file)[1]])
    asked = Reduction(channels=Channels((5, 3, 60)), pool="avg")
    parts = model.parts_of([layer], lambda _: asked)
    assert parts == {layer.name: asked}
    whole = model.run(x, [layer])[layer.name]
    found = model.run(x, [layer], parts=parts)[layer.name]
    expected = whole[:, [5, 3, 60]].mean(axis=(2, 3), dtype=np.float64).astype(np.float32)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in float16."""
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for given in proto.graph.input:
        given.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return proto


def test_a_layer_of_a_float16_model_is_float16_on_the_gpu_too(tmp_path: Path) -> None:
    """Its values, and their average, whose sum float16 could not hold."""
    half_file = put(tmp_path, "half", halved(small_cnn()))
    half = load("half", "1", half_file, tmp_path / "half", Runtime(provider="cuda"), PlanCache(1 << 30))
    x = np.random.default_rng(0).random((2, 3, 64, 64)).astype(np.float16)
    (layer,) = half.layers((64, 64)).select(["stem/relu"])
    expected = UncutGraph(half_file, ["stem/relu"]).run({"image": x})["stem/relu"].astype(np.float32)
    found = half.run(x, [layer])["stem/relu"]
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()
    parts = half.parts_of([layer], lambda _: Reduction(pool="avg"))
    averaged = half.run(x, [layer], parts=parts)["stem/relu"]
    assert averaged.dtype == np.float16
    mean = found.mean(axis=(2, 3), dtype=np.float64)
    assert np.abs(averaged - mean).max() <= 2e-3 * np.abs(mean).max()


def test_the_service_answers_from_the_gpu_and_says_so(file: Path, tmp_path: Path) -> None:
    """Over HTTP, forty requests at a time for three layers, against the uncut graph on the CPU."""
    repository = tmp_path / "models"
    (repository / "resnet50" / "1").mkdir(parents=True)
    (repository / "resnet50" / "1" / "model.onnx").write_bytes(file.read_bytes())
    names = [relus(file)[i] for i in (1, 20, -1)]
    images = [np.random.default_rng(i).random((1, 3, 224, 224), np.float32) for i in range(40)]
    with serving("--models", str(repository), "--provider", "cuda") as server, server.client() as client:
        assert client.get("/v1/models/resnet50").json()["provider"] == "cuda"

        def ask(i: int) -> np.ndarray:
            query = {"layers": names[i % 3], "format": "npy"}
            headers = {"Content-Type": "application/x-npy"}
            answer = client.post(
                "/v1/models/resnet50/features", params=query, content=npy(images[i]), headers=headers
            )
            assert answer.status_code == 200, answer.text
            return np.load(io.BytesIO(answer.content))

        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(ask, range(40)))
    uncut = UncutGraph(file, names)
    for i in range(0, 40, 7):
        expected = uncut.run({"gpu_0/data_0": images[i]})[names[i % 3]]
        assert np.abs(answers[i] - expected).max() <= TOLERANCE * np.abs(expected).max()
