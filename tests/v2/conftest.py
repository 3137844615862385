"""A server with models for the v2 protocol, and the report of the thirty points."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tests.builders import model, put, small_cnn
from tests.servers import Server, serving
from tests.v2.points import POINTS

LABELS = ["cat", "dog", "bird", "fish", "horse"]
ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    **{f"UINT{bits}": getattr(TensorProto, f"UINT{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": getattr(TensorProto, f"INT{bits}") for bits in (8, 16, 32, 64)},
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def echo(element: int) -> ModelProto:
    """Gives back what it is given."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["given"], ["same"])],
        "graph",
        [helper.make_tensor_value_info("given", element, ["n", "m"])],
        [ValueInfoProto(name="same")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def two_inputs() -> ModelProto:
    """An image, and a factor that the manifest has a value for."""
    return model(
        [
            helper.make_node("Relu", ["image"], ["relu"]),
            helper.make_node("Mul", ["relu", "factor"], ["product"]),
        ],
        {"image": ["n", 3, 8, 8], "factor": [1]},
        ["product"],
    )


def positions() -> ModelProto:
    """The places of what is not zero: there may be none."""
    return model([helper.make_node("NonZero", ["image"], ["places"])], {"image": [1, 1, 2, 2]}, ["places"])


def heavy() -> ModelProto:
    """Some hundred milliseconds of work for 256x256 pixels."""
    weights = numpy_helper.from_array(np.full((16, 16, 5, 5), 0.01, "float32"), "w")
    first = numpy_helper.from_array(np.full((16, 3, 5, 5), 0.01, "float32"), "first")
    names = ["image", *(f"map{i}" for i in range(24))]
    nodes = [
        helper.make_node("Conv", [a, "first" if a == "image" else "w"], [b], pads=[2] * 4)
        for a, b in pairwise(names)
    ]
    return model(nodes, {"image": ["n", 3, "h", "w"]}, [names[-1]], [weights, first])


@pytest.fixture(scope="session")
def v2_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v2")
    put(folder, "small", small_cnn(), toml='labels = "labels.txt"\n[input]\nsize = [32, 32]\n')
    (folder / "small" / "labels.txt").write_text("\n".join(LABELS))
    put(folder, "fixed", small_cnn(1, 32, 32))
    put(folder, "two", two_inputs(), toml="[constants]\nfactor = [2.0]\n")
    put(folder, "bare", two_inputs())
    put(folder, "positions", positions())
    put(folder, "heavy", heavy(), toml="[input]\nsize = [16, 16]\n")
    put(folder, "broken", small_cnn()).write_bytes(b"not ONNX")
    for datatype, element in ELEMENTS.items():
        put(folder, f"echo-{datatype.lower()}", echo(element))
    return folder


@pytest.fixture(scope="session")
def v2_server(v2_models: Path) -> Iterator[Server]:
    """Unoptimised, so that values equal the uncut graph's; it takes as many as the tests send at once."""
    with serving("--models", str(v2_models), "--graph-optimization", "off") as running:
        yield running


@pytest.fixture(scope="session")
def http(v2_server: Server) -> Iterator[httpx.Client]:
    with v2_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def address(v2_server: Server) -> str:
    """As clients of the protocol take it."""
    return v2_server.url.removeprefix("http://")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "call" and (marker := item.get_closest_marker("point")):
        outcome = "holds" if call.excinfo is None else "FAILS"
        for number in marker.args:
            item.config.stash.setdefault(OUTCOMES, {}).setdefault(number, []).append(outcome)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With -s: which of the thirty points hold."""
    outcomes = config.stash.get(OUTCOMES, {})
    if config.getoption("capture") != "no" or not outcomes:
        return
    for number, text in POINTS.items():
        found = outcomes.get(number, [])
        verdict = "FAILS" if "FAILS" in found else "holds" if found else "was not looked at"
        terminalreporter.write_line(f"{number:2} {verdict} ({len(found)} tests): {text}")


OUTCOMES = pytest.StashKey[dict[int, list[str]]]()
