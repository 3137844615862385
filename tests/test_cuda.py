"""On a GPU, with onnxruntime-gpu instead of onnxruntime: `python -m pytest -m cuda`."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.engine.loaded import LoadedModel, load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from tests.benchmarks.resnet import random_resnet50, relus
from tests.oracles import UncutGraph

# TF32 and other orders of summation; random weights make values large.
TOLERANCE = 5e-3

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
        (rng.random((1, 3, 224, 224), np.float32), [model.layers().by_name[relus(file)[i]]])
        for i in (1, 20, -1, 30, -1)
    ]
    for outcome, (x, layers) in zip(model.run_together(jobs), jobs, strict=True):
        assert isinstance(outcome, dict)
        alone = model.run(x, layers)
        name = layers[0].name
        assert np.abs(outcome[name] - alone[name]).max() <= TOLERANCE * np.abs(alone[name]).max()
