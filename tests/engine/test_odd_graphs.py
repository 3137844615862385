"""Graphs of unusual structure: what the service gives of them is what the uncut graph gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine.loaded import LoadedModel
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.values import Array, Layer, Parts
from tests.oracles import UncutGraph

RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
CONV = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4)
Job = tuple[Array, Sequence[Layer], Parts]
IMAGES = RNG.standard_normal((4, 1, 3, 8, 8)).astype(np.float32)
RUNTIME, ON_DEVICE = Runtime(optimization="off"), Runtime(optimization="off", bind=True)


def node(op: str, reads: str, makes: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), makes.split(), **attributes)


def graph(nodes: Sequence[onnx.NodeProto], outputs: str, **stored: object) -> onnx.ModelProto:
    """A convolution of `x` (n, 3, 8, 8), `c`, and what follows."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    ends = [onnx.ValueInfoProto(name=name) for name in outputs.split()]
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in {"w": WEIGHTS, **stored}.items()]
    whole = helper.make_graph([CONV, *nodes], "g", [x], ends, tensors)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


def loaded(file: Path, runtime: Runtime = RUNTIME) -> LoadedModel:
    return load("m", "1", file, file.parents[1], runtime, PlanCache(1 << 30))


def rows(model: LoadedModel, names: str) -> list[Layer]:
    return [model.layers().by_name[name] for name in names.split()]


SPLIT = graph(
    [
        node("Relu", "c", "r"),
        node("Split", "r", "a b", axis=1),
        node("Neg", "b", "nb"),
        node("Concat", "a nb", "o", axis=1),
    ],
    "o",
)


@pytest.mark.parametrize("known", ["a", "b", "a nb", "r b"])
def test_a_kept_map_of_a_node_with_several_does_not_stand_in_the_way_of_the_others(
    tmp_path: Path, known: str
) -> None:
    file = saved(tmp_path, SPLIT)
    model, x = loaded(file), IMAGES[0]
    uncut = UncutGraph(file, ["r", "a", "b", "nb", "o"]).run({"x": x})
    values = {"x": x, **{name: uncut[name] for name in known.split()}}
    plan = model.plan(rows(model, "o"), values)
    for step in plan.steps:
        assert values.keys() >= set(step.reads)
        values |= model.run_step(step, x, values)
    assert np.array_equal(values["o"], uncut["o"])


def test_an_input_may_be_an_output(tmp_path: Path) -> None:
    file = saved(tmp_path, graph([], "c x"))
    model = loaded(file)
    found = model.run(IMAGES[0], rows(model, "x c"))
    assert np.array_equal(found["x"], IMAGES[0])
    assert np.array_equal(found["c"], UncutGraph(file, ["c"]).run({"x": IMAGES[0]})["c"])


def branch(op: str) -> onnx.GraphProto:
    return helper.make_graph([node(op, "c", "y")], op, [], [onnx.ValueInfoProto(name="y")])


ZERO = np.zeros((1, 1, 1, 1), np.float32)
POSITIVE = [node("ReduceMean", "x", "s"), node("Greater", "s z", "q")]
NUMBER = graph([node("ReduceMean", "c", "s", keepdims=0), node("Mul", "c s", "o")], "o")
BRANCH = graph(
    [*POSITIVE, node("If", "q", "o", then_branch=branch("Identity"), else_branch=branch("Neg"))], "o", z=ZERO
)
CHOICE = graph([*POSITIVE, node("Neg", "c", "n"), node("Where", "q c n", "o")], "o", z=ZERO)
CALLED = graph([*POSITIVE, node("F", "q c", "o", domain="ours")], "o", z=ZERO)
CALLED.opset_import.append(helper.make_opsetid("ours", 1))
CALLED.functions.append(
    helper.make_function(
        "ours",
        "F",
        ["q", "c"],
        ["o"],
        [node("If", "q", "o", then_branch=branch("Identity"), else_branch=branch("Neg"))],
        [helper.make_opsetid("", 17)],
    )
)


@pytest.mark.parametrize("runtime", [RUNTIME, ON_DEVICE], ids=["host", "device"])
@pytest.mark.parametrize(
    "proto", [NUMBER, BRANCH, CHOICE, CALLED], ids=["number", "branch", "choice", "called"]
)
def test_no_image_of_a_batch_decides_for_another(
    tmp_path: Path, proto: onnx.ModelProto, runtime: Runtime
) -> None:
    """Two images of noise agree in what they would decide; these do not."""
    file = saved(tmp_path, proto)
    model, uncut = loaded(file, runtime), UncutGraph(file, ["c", "o"])
    images = [image - image.mean() + sign for image, sign in zip(IMAGES, (3, -3, 2, -1), strict=True)]
    jobs: list[Job] = [
        (image, rows(model, names), {}) for image, names in zip(images, ("o", "c", "c o", "o"), strict=True)
    ]
    for (image, layers, _), outcome in zip(jobs, model.run_together(jobs), strict=True):
        expected = uncut.run({"x": image})
        assert isinstance(outcome, dict), outcome
        assert all(np.array_equal(outcome[layer.name], expected[layer.name]) for layer in layers)
    if proto is NUMBER:  # Of the others it is not known that their maps can be laid side by side.
        together = model.run(np.concatenate(images), rows(model, "o"))["o"]
        assert np.array_equal(together, np.concatenate([uncut.run({"x": image})["o"] for image in images]))


def test_who_asks_for_a_number_or_a_text_harms_nobody_in_the_batch(tmp_path: Path) -> None:
    words = {"keys_int64s": [0, 1, 2, 3], "values_strings": ["a", "b", "c", "d"], "default_string": "z"}
    proto = graph(
        [
            node("ReduceMean", "c", "s", keepdims=0),
            node("GlobalAveragePool", "c", "p"),
            node("ArgMax", "p", "am", axis=1),
            node("LabelEncoder", "am", "t", domain="ai.onnx.ml", **words),
        ],
        "s t",
    )
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    file = saved(tmp_path, proto)
    uncut = UncutGraph(file, ["c", "s", "t"])
    for runtime in (RUNTIME, ON_DEVICE):
        model = loaded(file, runtime)
        jobs: list[Job] = [
            (x, rows(model, names), {}) for x, names in zip(IMAGES, ("c", "s", "t", "c s"), strict=True)
        ]
        for (x, layers, _), outcome in zip(jobs, model.run_together(jobs), strict=True):
            assert isinstance(outcome, dict), outcome
            for layer in layers:
                expected = uncut.run({"x": x})[layer.name]
                assert outcome[layer.name].shape == expected.shape
                assert np.array_equal(outcome[layer.name], expected)


@pytest.mark.parametrize("runtime", [RUNTIME, ON_DEVICE], ids=["host", "device"])
def test_a_number_stays_a_number(tmp_path: Path, runtime: Runtime) -> None:
    """A vector of one in its place would give the map one more axis."""
    proto = graph([node("Gather", "c k", "o", axis=1)], "o")
    proto.graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, []))
    file = saved(tmp_path, proto)
    (tmp_path / "m" / "model.toml").write_text("[constants]\nk = 2\n")
    model = loaded(file, runtime)
    found = model.run(IMAGES[0], rows(model, "o"))["o"]
    assert np.array_equal(found, UncutGraph(file, ["o"]).run({"x": IMAGES[0], "k": np.array(2)})["o"])


def sparse(values: np.ndarray, name: str) -> onnx.SparseTensorProto:
    places = np.flatnonzero(values)
    return helper.make_sparse_tensor(
        helper.make_tensor(name, TensorProto.FLOAT, [len(places)], values.ravel()[places]),
        helper.make_tensor(f"{name}_places", TensorProto.INT64, [len(places)], places),
        list(values.shape),
    )


def test_sparse_weights_in_the_graph_and_in_its_branches_are_read(tmp_path: Path) -> None:
    offsets = np.zeros((1, 4, 1, 1), np.float32)
    offsets[0, 1] = 3
    inner = [
        helper.make_graph([node("Add", f"p {name}", "y")], name, [], [onnx.ValueInfoProto(name="y")])
        for name in ("then", "else")
    ]
    for part in inner:
        part.sparse_initializer.append(sparse(offsets, part.name))
    proto = graph(
        [
            node("Add", "c offsets", "p"),
            *POSITIVE,
            node("If", "q", "o", then_branch=inner[0], else_branch=inner[1]),
        ],
        "o",
        z=ZERO,
    )
    proto.graph.sparse_initializer.append(sparse(offsets, "offsets"))
    file = saved(tmp_path, proto)
    model = loaded(file)
    found = model.run(IMAGES[0], rows(model, "p o"))
    expected = UncutGraph(file, ["p", "o"]).run({"x": IMAGES[0]})
    assert all(np.array_equal(found[name], expected[name]) for name in ("p", "o"))


def test_a_float16_network_is_near_the_uncut_graph(tmp_path: Path) -> None:
    """On a CPU the runtime computes it in float32 and rounds what leaves a session, as at a segment's end."""
    stored, nodes, before = [], [], "x"
    for index in range(24):
        shape = (8, 8 if index else 3, 3, 3)
        weights = RNG.standard_normal(shape) * (2 / (9 * shape[1])) ** 0.5
        stored.append(numpy_helper.from_array(weights.astype(np.float16), f"w{index}"))
        nodes.append(node("Conv", f"{before} w{index}", f"c{index}", pads=[1] * 4))
        nodes.append(node("Relu", f"c{index}", before := f"r{index}"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 3, 8, 8])
    whole = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name=before)], stored)
    opsets = [helper.make_opsetid("", 17)]
    file = saved(tmp_path, helper.make_model(whole, opset_imports=opsets, ir_version=8))
    model, image = loaded(file), IMAGES[0].astype(np.float16)
    assert len(model.plan(rows(model, before)).steps) > 4
    for name in ("r7", before):
        found = model.run(image, rows(model, name))[name].astype(np.float32)
        expected = UncutGraph(file, [name]).run({"x": image})[name].astype(np.float32)
        assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()


LARGE = RNG.standard_normal((4, 4, 64, 64)).astype(np.float32)


def held_in(proto: onnx.ModelProto, folder: Path) -> int:
    plans = PlanCache(1 << 30)
    file = saved(folder, proto)
    load("m", "1", file, file.parents[1], RUNTIME, plans)
    return plans.kept_bytes


def test_weights_count_wherever_they_are_stored(tmp_path: Path) -> None:
    """As an initializer, as a constant, in a branch, in a function."""
    tensor = numpy_helper.from_array(LARGE, "large")
    constant = helper.make_node("Constant", [], ["large"], value=tensor)
    inner = helper.make_graph(
        [node("ReduceSum", "large", "y")], "b", [], [onnx.ValueInfoProto(name="y")], [tensor]
    )
    add = node("ReduceSum", "large", "sum")
    called = graph([node("F", "c", "o", domain="ours")], "o")
    called.opset_import.append(helper.make_opsetid("ours", 1))
    body = [constant, add, node("Add", "c sum", "o")]
    called.functions.append(
        helper.make_function("ours", "F", ["c"], ["o"], body, [helper.make_opsetid("", 17)])
    )
    ways = [
        graph([add, node("Add", "c sum", "o")], "o", large=LARGE),
        graph([constant, add, node("Add", "c sum", "o")], "o"),
        graph([*POSITIVE, node("If", "q", "o", then_branch=inner, else_branch=inner)], "o", z=ZERO),
        called,
    ]
    for index, proto in enumerate(ways):
        assert held_in(proto, tmp_path / str(index)) > LARGE.nbytes
