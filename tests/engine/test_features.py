"""Features: what blocks give at each reduction, on small graphs; tests/zoo compares with timm."""

import numpy as np
import onnx

from service.engine.layers.listing import list_layers
from tests.engine.graphs import model, network, node

SIDE = 32


class Builder:
    """Nodes one after the other; each method gives the name of the tensor that it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._count = 0

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        self._count += 1
        made = f"{op.lower()}{self._count}"
        self.nodes.append(node(op, list(inputs), [made], **attributes))
        return made

    def conv(self, data: str, made: int, read: int, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        name = f"w{self._count}"
        self.weights[name] = np.ones((made, read // group, kernel, kernel), np.float32)
        pads = [kernel // 2] * 4
        return self.add("Conv", data, name, strides=[stride] * 2, pads=pads, group=group)

    def relu(self, data: str) -> str:
        return self.add("Relu", data)

    def norm(self, data: str, channels: int) -> str:
        names = [f"{part}{self._count}" for part in ("s", "b", "m", "v")]
        self.weights |= {name: np.ones(channels, np.float32) for name in names}
        return self.add("BatchNormalization", data, *names)

    def head(self, data: str, channels: int) -> str:
        pooled = self.add("Flatten", self.add("GlobalAveragePool", data))
        self.weights["linear"] = np.ones((5, channels), np.float32)
        return self.add("Gemm", pooled, "linear", transB=1)

    def features(self, *outputs: str) -> list[str]:
        proto = model(self.nodes, [1, 3, SIDE, SIDE], list(outputs), self.weights)
        rows = [row for row in list_layers(network(proto)) if row.feature is not None]
        return [row.name for row in sorted(rows, key=lambda row: row.feature or 0)]


def test_an_inverted_residual_gives_its_narrow_output() -> None:
    b = Builder()
    stem = b.relu(b.conv("x", 8, 3, stride=2))
    first = b.conv(b.relu(b.conv(stem, 8, 8, group=8)), 4, 8, kernel=1)
    wide = b.relu(b.conv(first, 16, 4, kernel=1))
    second = b.conv(b.relu(b.conv(wide, 16, 16, stride=2, group=16)), 6, 16, kernel=1)
    again = b.relu(b.conv(second, 24, 6, kernel=1))
    third = b.add("Add", second, b.conv(b.relu(b.conv(again, 24, 24, group=24)), 6, 24, kernel=1))
    last = b.relu(b.conv(third, 32, 6, kernel=1))
    assert b.features(b.head(last, 32)) == [first, third]


def test_a_residual_network_gives_its_activated_sums() -> None:
    b = Builder()
    stem = b.relu(b.conv("x", 8, 3, stride=2))
    pooled = b.add("MaxPool", stem, kernel_shape=[2, 2], strides=[2, 2])
    first = b.relu(b.add("Add", pooled, b.conv(b.relu(b.conv(pooled, 8, 8)), 8, 8)))
    down = b.conv(first, 16, 8, kernel=1, stride=2)
    second = b.relu(b.add("Add", down, b.conv(b.relu(b.conv(first, 16, 8, stride=2)), 16, 16)))
    assert b.features(b.head(second, 16)) == [stem, first, second]


def test_a_pre_activation_network_gives_its_sums_before_the_next_norm() -> None:
    b = Builder()
    stem = b.conv("x", 8, 3, stride=2)
    first = b.add("Add", stem, b.conv(b.relu(b.norm(stem, 8)), 8, 8))
    ready = b.relu(b.norm(first, 8))
    down = b.conv(ready, 16, 8, kernel=1, stride=2)
    second = b.add("Add", down, b.conv(b.relu(b.norm(b.conv(ready, 16, 8, stride=2), 16)), 16, 16))
    assert b.features(b.head(b.relu(b.norm(second, 16)), 16)) == [first, second]


def test_a_dense_block_gives_what_the_transition_reads() -> None:
    b = Builder()
    stem = b.relu(b.conv("x", 8, 3, stride=2))
    dense = b.add("Concat", stem, b.conv(b.relu(b.norm(stem, 8)), 4, 8), axis=1)
    narrow = b.conv(b.relu(b.norm(dense, 12)), 6, 12, kernel=1)
    pooled = b.add("AveragePool", narrow, kernel_shape=[2, 2], strides=[2, 2])
    last = b.relu(b.conv(pooled, 8, 6))
    assert b.features(b.head(last, 8)) == [dense, last]


def test_a_head_with_a_layer_of_its_own_behind_the_pooling_belongs_to_no_block() -> None:
    b = Builder()
    first = b.conv("x", 4, 3, stride=2)
    wide = b.relu(b.conv(first, 16, 4, kernel=1))
    hidden = b.relu(b.conv(b.add("GlobalAveragePool", wide), 32, 16, kernel=1))
    assert b.features(b.head(hidden, 32)) == [wide]


def test_a_pyramid_gives_the_finished_maps_that_its_heads_read() -> None:
    b = Builder()
    fine = b.relu(b.conv("x", 8, 3, stride=2))
    coarse = b.relu(b.conv(fine, 8, 8, stride=2))
    b.weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    up = b.add("Resize", coarse, "", "scales", mode="nearest")
    merged = b.relu(b.conv(b.add("Concat", up, fine, axis=1), 8, 16))
    down = b.relu(b.conv(merged, 8, 8, stride=2))
    lower = b.relu(b.conv(b.add("Concat", down, coarse, axis=1), 8, 16))
    heads = [b.conv(data, 5, 8, kernel=1) for data in (merged, merged, lower, lower)]
    assert b.features(*heads) == [merged, lower]


def test_parallel_branches_give_their_maps_before_they_are_added_up() -> None:
    b = Builder()
    fine = b.relu(b.conv("x", 8, 3, stride=2))
    coarse = b.relu(b.conv(fine, 8, 8, stride=2))
    b.weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    exchanged = b.relu(b.add("Add", fine, b.add("Resize", coarse, "", "scales", mode="nearest")))
    own = b.relu(b.conv(coarse, 8, 8))
    last_fine = b.relu(b.conv(exchanged, 8, 8))
    joined = b.add("Add", own, b.relu(b.conv(last_fine, 8, 8, stride=2)))
    assert b.features(b.head(joined, 8)) == [last_fine, own]


def test_a_gate_belongs_to_its_block() -> None:
    b = Builder()
    data = b.relu(b.conv("x", 8, 3, stride=2))
    gate = b.add("Sigmoid", b.conv(b.add("GlobalAveragePool", data), 8, 8, kernel=1))
    gated = b.add("Mul", data, gate)
    last = b.relu(b.conv(gated, 8, 8, stride=2))
    output = b.head(last, 8)
    assert b.features(output) == [gated, last]
    rows = list_layers(network(model(b.nodes, [1, 3, SIDE, SIDE], [output], b.weights)))
    assert [row.name for row in rows if row.stage is not None] == [gated, last]


def test_a_gate_in_a_block_that_changes_the_resolution_does_not_end_it_early() -> None:
    """As the first stage of RegNetY-400MF: one gated block beside a strided shortcut."""
    b = Builder()
    stem = b.relu(b.conv("x", 8, 3, stride=2))
    inner = b.relu(b.conv(stem, 8, 8, stride=2))
    pooled = b.add("GlobalAveragePool", inner)
    gated = b.add("Mul", inner, b.add("Sigmoid", b.conv(pooled, 8, 8, kernel=1)))
    block = b.conv(gated, 8, 8, kernel=1)
    first = b.relu(b.add("Add", block, b.conv(stem, 8, 8, kernel=1, stride=2)))
    last = b.relu(b.add("Add", b.conv(first, 8, 8, stride=2), b.conv(first, 8, 8, kernel=1, stride=2)))
    assert b.features(b.head(last, 8)) == [stem, first, last]


def test_branches_that_are_added_within_a_block_do_not_take_its_activation_away() -> None:
    """As RepVGG: each block activates the sum of two convolutions and its input."""
    b = Builder()
    stem = b.relu(b.conv("x", 8, 3, stride=2))
    strided = b.relu(b.add("Add", b.conv(stem, 8, 8, stride=2), b.conv(stem, 8, 8, kernel=1, stride=2)))
    inner = b.add("Add", b.conv(strided, 8, 8), b.conv(strided, 8, 8, kernel=1))
    block = b.relu(b.add("Add", inner, strided))
    assert b.features(b.head(block, 8)) == [stem, block]
