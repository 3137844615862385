"""Dtypes and shapes of every tensor of a graph whose inputs have certain shapes.

Three sources, each for what the one before leaves open: ONNX's shape inference; onnxruntime's, on a copy of
the graph without its weights in which constants are folded; and one run. The copy serves to read shapes
only: layers, their order and every session come from the file's own graph.
"""

import math
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import replace

import numpy as np

from service.engine.graph import Graph
from service.engine.nodes import OF_SIZES, Network, Node
from service.engine.runner import Runtime
from service.engine.variable_shapes import variable_shapes
from service.errors import ModelFailed
from service.values import Array, TensorSpec

Shapes = Mapping[str, tuple[int, ...]]
Sides = tuple[int | None, ...]
# Inputs that say how a node changes shapes and places, by operator: from this one on.
PARAMETERS = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Pad", "Slice", "Resize", "Upsample", "TopK"), 1),
    **dict.fromkeys(("Gather", "Squeeze", "Unsqueeze", "Split", "CenterCropPad", "Trilu", "CumSum"), 1),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"), 1),
    "ConstantOfShape": 0,
    "Range": 0,
}
NOT_FOLDED = (
    *("RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"),
    *("If", "Loop", "Scan"),
)
# Maps of so many tensors are held at one time where shapes are measured.
MEASURED_AT_ONCE = 32
POOLS = ("MaxPool", "AveragePool", "LpPool")


def describe(graph: Graph, runtime: Runtime, shapes: Shapes) -> Network:
    """A graph at some shapes, complete but for what depends on the inputs' values.

    Raises:
        ModelFailed: the runtime refuses the graph; with `at_run` other shapes may do.
    """
    try:
        network = _inferred(graph, runtime, graph.network(shapes))
        network = _measured(graph, runtime, network, shapes)
    except ModelFailed as error:
        by_shape = error.at_run or "ShapeInferenceError" in error.detail
        raise ModelFailed(error.detail, at_run=by_shape) from error
    return replace(network, folded=_folded(graph, runtime, network))


def _inferred(graph: Graph, runtime: Runtime, network: Network) -> Network:
    """Fill what ONNX's inference leaves open from the runtime's own."""
    unknown = _unknown(network)
    if not unknown:
        return replace(network, variable=frozenset())
    shapes = {spec.name: network.shape(spec.name) or (None,) for spec in network.inputs}
    known = {n: tuple(s or 0 for s in shape) for n, shape in shapes.items() if None not in shape}
    found = runtime.specs(graph.exposed(known), graph.folder)
    network = _with(network, {name: found[name] for name in unknown if name in found})
    return replace(network, variable=variable_shapes(network, graph.branching))


def _measured(graph: Graph, runtime: Runtime, network: Network, shapes: Shapes) -> Network:
    """Run once for what inference leaves open or is known to get wrong."""
    unknown = {n for n in _unknown(network) if n not in network.variable}
    wanted = unknown | _unreliable(network)
    found = _shapes_of_run(graph, runtime, network, shapes, wanted)
    wrong = {n for n, spec in found.items() if n not in unknown and spec.shape != network.shape(n)}
    if wrong:
        found |= _shapes_of_run(graph, runtime, network, shapes, _behind(network, wrong) - found.keys())
    return _with(network, found)


def _shapes_of_run(
    graph: Graph, runtime: Runtime, network: Network, shapes: Shapes, names: Collection[str]
) -> dict[str, TensorSpec]:
    """Dtypes and shapes of some tensors, as one run on noise gives them.

    Inputs without a shape cannot be made up: then nothing is found.

    Raises:
        ModelFailed: the network does not run at these shapes.
    """
    order = [name for node in network.nodes for name in node.makes if name in names]
    found: dict[str, TensorSpec] = {}
    for start in range(0, len(order), MEASURED_AT_ONCE):
        some = order[start : start + MEASURED_AT_ONCE]
        session = runtime.compile_exact(graph.cut(some), graph.folder)
        if not all(name in shapes for name in session.inputs):
            return found
        specs = {spec.name: spec for spec in network.inputs}
        values = session.run({name: noise(specs[name], shapes[name]) for name in session.inputs})
        found |= {name: _spec_of(name, value) for name, value in values.items()}
    return found


def noise(spec: TensorSpec, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Reproducible values for an input: 0..1 in floating point, 0..255 in uint8, zeros of other kinds."""
    values = np.random.default_rng(seed).random(shape, np.float32)
    if spec.dtype == "uint8":
        return (values * 255).astype(np.uint8)
    if spec.dtype in ("float32", "float16", "float64", "bfloat16"):
        return values.astype(np.float32 if spec.dtype == "bfloat16" else spec.dtype)
    return np.zeros(shape, np.object_ if spec.dtype == "str" else spec.dtype)


def _folded(graph: Graph, runtime: Runtime, network: Network) -> Mapping[str, Array]:
    """The values of nodes' parameters that constants and shapes decide: pads, ends of slices, sizes."""
    measured = _measured_sizes(network)
    known = {**network.constants, **measured}
    computable = _computable(network, known)
    wanted = {name for node in network.nodes for name in _parameters(node)} & computable
    return {**known, **_run_small(graph, runtime, sorted(wanted), measured)} if wanted else known


def _computable(network: Network, known: Container[str]) -> set[str]:
    """What small constants and shapes give by deterministic nodes, and is small itself."""
    found: set[str] = set()
    for node in network.nodes:
        if node.op in NOT_FOLDED or node.domain or not node.inputs:
            continue
        if all(name in known or name in found for name in node.reads):
            found.update(n for n in node.makes if n not in known and network.is_small(n))
    return found


def _run_small(
    graph: Graph, runtime: Runtime, wanted: list[str], measured: Mapping[str, Array]
) -> Mapping[str, Array]:
    given = [TensorSpec(name, value.dtype.name, value.shape) for name, value in measured.items()]
    try:
        session = runtime.compile_exact(graph.cut(wanted, given), graph.folder)
        return session.run({name: measured[name] for name in session.inputs})
    except ModelFailed:
        return {}


def _measured_sizes(network: Network) -> dict[str, Array]:
    """What Shape and Size make of tensors whose shape is known: int64."""
    found = {}
    for node in network.nodes:
        if node.op in OF_SIZES and node.domain == "" and node.outputs:
            shape = network.shape(node.inputs[0])
            if shape is not None and None not in shape and node.inputs[0] not in network.variable:
                sizes = [size or 0 for size in shape]
                start, end = (node.attributes.get(key) for key in ("start", "end"))
                value = math.prod(sizes) if node.op == "Size" else sizes[start:end]
                found[node.outputs[0]] = np.asarray(value, np.int64)
    return found


def _parameters(node: Node) -> Iterable[str]:
    first = PARAMETERS.get(node.op) if node.domain == "" else None
    return () if first is None else (name for name in node.inputs[first:] if name)


def _unknown(network: Network) -> set[str]:
    return {n for node in network.nodes for n in node.makes if _is_incomplete(network.tensors.get(n))}


def _is_incomplete(spec: TensorSpec | None) -> bool:
    """Whether a tensor's rank or one of its sides is unknown; sequences and maps have none."""
    if spec is not None and not spec.dtype:
        return False
    return spec is None or spec.shape is None or None in spec.shape


def _unreliable(network: Network) -> set[str]:
    """Outputs of poolings for which inference counts a last window that starts in the padding."""
    return {
        name
        for node in network.nodes
        if node.op in POOLS and node.domain == "" and node.attributes.get("ceil_mode")
        for name in node.makes
        if _starts_in_padding(node, network.shape(node.inputs[0]), network.shape(name))
    }


def _starts_in_padding(node: Node, before: Sides | None, after: Sides | None) -> bool:
    """Whether the last window along some axis begins behind the map; also where a shape is unknown."""
    if before is None or after is None or None in before or None in after:
        return True
    rank = len(after) - 2
    strides = node.attributes.get("strides") or [1] * rank
    begins = node.attributes.get("pads") or [0] * 2 * rank
    axes = zip(before[2:], after[2:], strides, begins[:rank], strict=True)
    return any(((made or 0) - 1) * stride >= (side or 0) + begin for side, made, stride, begin in axes)


def _behind(network: Network, names: Collection[str]) -> set[str]:
    """Everything that is computed from some tensors."""
    found = set(names)
    for node in network.nodes:
        if not found.isdisjoint(node.reads):
            found.update(node.makes)
    return found - set(names) - network.variable


def _with(network: Network, found: Mapping[str, TensorSpec]) -> Network:
    return replace(network, tensors={**network.tensors, **found}) if found else network


def _spec_of(name: str, value: object) -> TensorSpec:
    if not isinstance(value, np.ndarray):
        return TensorSpec(name, "", None)
    dtype = "str" if value.dtype.kind in "OU" else value.dtype.name
    return TensorSpec(name, dtype, value.shape)
