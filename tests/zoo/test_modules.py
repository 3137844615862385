"""Every module of a network by its path, against what PyTorch's forward hooks see."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from service.engine.graph import read
from service.engine.layers.listing import list_layers
from service.engine.layers.modules import find_modules
from service.engine.selection import LayerTable
from service.errors import LayerNotFound
from service.values import Array

torch = pytest.importorskip("torch")
# torch warns of its own deprecated functions while it exports.
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]
ALL = [
    "resnet50",
    "mobilenetv2_100",
    "efficientnet_b0",
    "densenet121",
    "resnest14d",
    "levit_128s",
    "swin_tiny_patch4_window7_224",
]
SAMPLE = ["resnet18", "mobilenetv3_small_100"]
NETWORKS = SAMPLE if os.environ.get("ZOO_NETWORKS") == "sample" else ALL
# The value exists, and the path does not tell which module returned it. Equal norms of levit's two heads are
# one node; in swin the reshape at the end of each attention is merged with the one behind it.
UNTOLD = {
    "levit_128s.dynamo": {"head_dist.bn"},
    "swin_tiny_patch4_window7_224.dynamo": {
        f"layers.{stage}.blocks.{i}.attn" for stage, depth in enumerate((2, 2, 6, 2)) for i in range(depth)
    },
}


@dataclass(frozen=True)
class Case:
    """One export: its layers, their values for one image, and what each module returned in PyTorch."""

    name: str
    table: LayerTable
    values: Mapping[str, Array]
    hooked: Mapping[str, list[object]]
    norms: frozenset[str]

    def found(self, path: str) -> Array | str:
        """The value that the path selects, or why there is none."""
        try:
            (layer,) = self.table.select([f"module:{path}"])
        except LayerNotFound as error:
            return error.detail
        return self.values[layer.name]


@pytest.fixture(scope="module", params=[f"{n}.{v}" for n in NETWORKS for v in ("fixed", "dynamo")])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    from tests.zoo.networks import build, export, images

    name, _, variant = request.param.rpartition(".")
    net, shape = build(name)
    path = tmp_path_factory.mktemp("zoo") / "model.onnx"
    image = images(shape)[:1]
    hooked = hook(net, image)
    norms = {n for n, m in net.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    export(net, shape, variant, path)
    table = table_of(path, image.numpy())
    yield Case(request.param, table, run(path, table, image.numpy()), hooked, frozenset(norms))
    for file in path.parent.iterdir():
        file.unlink()


@torch.no_grad()
def hook(net: Any, image: Any) -> dict[str, list[object]]:
    """What each call of each module returned, as arrays where that was one tensor."""
    calls: dict[str, list[object]] = {}

    def keep(path: str) -> object:
        def store(module: object, inputs: object, output: Any) -> None:
            # What comes next may work in place.
            is_tensor = isinstance(output, torch.Tensor)
            calls.setdefault(path, []).append(output.clone().numpy() if is_tensor else output)

        return store

    modules = [(path, module) for path, module in net.named_modules() if path]
    hooks = [module.register_forward_hook(keep(path)) for path, module in modules]
    net(image)
    for one in hooks:
        one.remove()
    return calls


def table_of(path: Path, image: Array) -> LayerTable:
    graph = read(path)
    network = graph.network({graph.inputs[0].name: image.shape})
    return LayerTable(list_layers(network), graph.outputs, (), find_modules(network))


def run(path: Path, table: LayerTable, image: Array) -> dict[str, Array]:
    """Every layer of floats, computed by the whole graph with optimization off."""
    names = [x.name for x in table.layers if x.dtype.startswith("float") or x.name in table.outputs]
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.use_per_session_threads = False  # As all sessions of this process.
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))


def equal(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    return not other.size or np.abs(one - other).max() <= 2e-3 * np.abs(other).max()


def test_a_module_path_gives_what_the_module_returned(case: Case) -> None:
    found = {path: case.found(path) for path in case.hooked}
    given = {path: value for path, value in found.items() if not isinstance(value, str)}
    assert len(given) > len(case.hooked) / 4
    different = [p for p, value in given.items() if not equal(value, np.asarray(case.hooked[p][0]))]
    assert different == []
    assert [path for path in given if len(case.hooked[path]) > 1] == []


def test_every_module_whose_output_is_in_the_file_is_found(case: Case) -> None:
    """Of those that left an operation, or whose norm was folded; an Identity leaves nothing."""
    modules = case.table.modules
    left = {path for chain in modules.chains.values() for path in chain} | case.norms | set(modules.reasons)
    missing = {
        path
        for path, outputs in case.hooked.items()
        if path in left
        and isinstance(case.found(path), str)
        and isinstance(outputs[0], np.ndarray)
        and len(outputs) == 1
        and any(equal(value, outputs[0]) for value in case.values.values())
    }
    assert missing == UNTOLD.get(case.name, set())


def test_a_folded_convolution_is_refused_with_what_to_ask(case: Case) -> None:
    folded = {p: r for p, r in case.table.modules.reasons.items() if "folded by the exporter; ask " in r}
    assert folded or case.name.startswith("swin")
    norms = {reason.split("ask ")[1].split(",")[0] for reason in folded.values()}
    assert norms <= case.norms
