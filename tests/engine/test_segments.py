"""Where networks are cut, and which parts some layers need."""

from collections.abc import Callable, Sequence

import pytest
from _pytest.mark.structures import ParameterSet
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.nodes import Network, Node
from service.engine.segments import MOST_CROSSING, MOST_SEGMENTS, Segments, find_ends
from service.values import TensorSpec
from tests.engine.graphs import GOOD, LIGHT_NAMES, good, light

FLOAT = "float32"


def chain(length: int, skip: int = 0) -> Network:
    """`Conv` and `Relu` in turn; with `skip` each Relu is added to the one so many nodes before it."""
    nodes, tensors = (
        [],
        {"x": TensorSpec("x", FLOAT, (1, 4, 8, 8)), "w": TensorSpec("w", FLOAT, (4, 4, 1, 1))},
    )
    last = "x"
    for i in range(length):
        nodes.append(Node(f"conv{i}", "Conv", "", (last, "w"), (f"c{i}",)))
        nodes.append(Node(f"relu{i}", "Relu", "", (f"c{i}",), (f"r{i}",)))
        last = f"r{i}"
        if skip and i >= skip:
            nodes.append(Node(f"add{i}", "Add", "", (last, f"r{i - skip}"), (f"a{i}",)))
            last = f"a{i}"
    for node in nodes:
        tensors[node.outputs[0]] = TensorSpec(node.outputs[0], FLOAT, (1, 4, 8, 8))
    return Network(nodes, (tensors["x"],), (last,), tensors, {})


def segments_of(network: Network) -> Segments:
    return Segments(network, find_ends(network, [1] * len(network.nodes)))


def needed(network: Network, layers: Sequence[str]) -> set[int]:
    """All nodes before these layers, found the plain way."""
    makers = {name: i for i, node in enumerate(network.nodes) for name in node.makes}
    found: set[int] = set()
    waiting = list(layers)
    while waiting:
        name = waiting.pop()
        if name in makers and makers[name] not in found:
            found.add(makers[name])
            waiting.extend(network.nodes[makers[name]].reads)
    return found


def run(network: Network, segments: Segments, layers: Sequence[str], known: Sequence[str] = ()) -> list[int]:
    """The dependent nodes that a plan runs, each step having all that it reads."""
    makers = {name: i for i, node in enumerate(network.nodes) for name in node.makes}
    there, ran, dependent = {spec.name for spec in network.inputs} | set(known), [], network.dependent()
    for step in segments.plan(layers, known).steps:
        assert there.issuperset(step.reads)
        waiting, seen = list(step.makes), set()
        while waiting:
            name = waiting.pop()
            if name in step.reads or name not in makers or makers[name] in seen:
                continue
            seen.add(makers[name])
            waiting.extend(network.nodes[makers[name]].reads)
        ran += [i for i in seen if not dependent.isdisjoint(network.nodes[i].reads)]
        there.update(step.makes)
    assert there.issuperset(layers)
    return ran


def networks() -> list[ParameterSet]:
    real = [pytest.param(lambda n=name: good(n), id=name) for name in GOOD]
    drawn = [pytest.param(lambda n=name: light(n), id=f"light {name}") for name in LIGHT_NAMES]
    return [*real, *drawn]


@pytest.mark.parametrize("read", networks())
def test_a_plan_runs_each_node_that_is_needed_once_and_no_other(read: Callable[[], Network]) -> None:
    network = read()
    segments = segments_of(network)
    dependent = network.dependent()
    names = [name for node in network.nodes for name in node.makes if name in dependent]
    for name in names[:: max(len(names) // 12, 1)]:
        wanted = [i for i in needed(network, [name]) if not dependent.isdisjoint(network.nodes[i].reads)]
        assert sorted(run(network, segments, [name])) == sorted(wanted)


@settings(max_examples=60)
@given(st.data())
def test_what_is_known_is_not_computed_again(data: st.DataObject) -> None:
    network = chain(data.draw(st.integers(4, 40)), skip=data.draw(st.integers(0, 3)))
    segments = segments_of(network)
    names = [name for node in network.nodes for name in node.makes]
    layers = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    known = data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    ran = run(network, segments, layers, known)
    assert len(ran) == len(set(ran))
    assert not {name for i in ran for name in network.nodes[i].makes} & set(known)


def test_everything_known_needs_no_step() -> None:
    assert segments_of(chain(10)).plan(["r5"], {"r5"}).steps == ()


def test_a_layer_goes_on_from_the_nearest_known_map() -> None:
    network = chain(32)
    (step,) = segments_of(network).plan(["c20"], {"r19", "r3"}).steps
    assert (step.reads, step.makes) == (("r19",), ("c20",))


@pytest.mark.parametrize("length", [1, 2, 16, 200])
def test_segments_are_few_and_alike(length: int) -> None:
    network = chain(length)
    ends = find_ends(network, [1] * len(network.nodes))
    assert ends[-1] == len(network.nodes) - 1
    assert len(ends) <= min(length, MOST_SEGMENTS)
    sizes = [b - a for a, b in zip([-1, *ends[:-1]], ends, strict=True)]
    assert max(sizes) <= 3 * (2 * length / MOST_SEGMENTS + 2)


def test_no_cut_parts_a_convolution_from_its_activation() -> None:
    network = chain(64, skip=2)
    for end in find_ends(network, [1] * len(network.nodes))[:-1]:
        assert network.nodes[end].op in ("Relu", "Add")
        assert network.nodes[end + 1].op != "Relu"


def test_too_many_skip_connections_are_not_cut_through() -> None:
    """As in a U-Net: in the middle more tensors lie across than are worth handing over."""
    depth = MOST_CROSSING + 4
    nodes = []
    for i in range(depth):
        nodes.append(Node(f"conv{i}", "Conv", "", (f"d{i - 1}" if i else "x", "w"), (f"c{i}",)))
        nodes.append(Node(f"down{i}", "Relu", "", (f"c{i}",), (f"d{i}",)))
    nodes += [
        Node(f"up{i}", "Add", "", (f"u{i - 1}" if i else f"d{depth - 1}", f"d{depth - 1 - i}"), (f"u{i}",))
        for i in range(depth)
    ]
    names = ["x", *(name for node in nodes for name in node.outputs)]
    tensors = {name: TensorSpec(name, FLOAT, (1, 4, 8, 8)) for name in names}
    network = Network(nodes, (tensors["x"],), (f"u{depth - 1}",), tensors, {})
    ends = find_ends(network, [1] * len(nodes))
    assert 2 * depth - 1 not in ends
    assert len(ends) > 1


def test_constants_are_folded_into_each_segment_and_never_handed_over() -> None:
    network = chain(32)
    nodes = [Node("scale", "Mul", "", ("w", "w"), ("ww",)), *network.nodes]
    nodes = [
        Node(n.name, n.op, "", tuple("ww" if i == "w" else i for i in n.inputs), n.outputs)
        if n.op == "Conv"
        else n
        for n in nodes
    ]
    tensors = {**network.tensors, "ww": network.tensors["w"]}
    whole = Network(nodes, network.inputs, network.outputs, tensors, {})
    steps = segments_of(whole).plan(["r31"]).steps
    assert len(steps) > 4
    assert all(len(step.reads) == 1 and "ww" not in step.makes for step in steps)
