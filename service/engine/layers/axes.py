"""Which part each axis of each tensor plays: batch, channel, row, column; where that is not certain, none.

`axis_rules` say what each operator does to axes. An input's own axes are found by following them to the
first operator that defines an order (Conv, pooling, ...).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.engine.layers.axis_rules import RULES, ordered_roles
from service.engine.layers.axis_step import Step
from service.engine.layers.operators import KNOWN_DOMAINS, ORDERED
from service.engine.layers.parts import (
    Axes,
    Axis,
    Roles,
    Shape,
    place_of,
    roles_of,
    same_sizes,
    sizes_of,
    whole,
    whole_axes,
)
from service.engine.layers.shape_values import Step as ShapeStep
from service.engine.layers.shape_values import shape_value
from service.engine.nodes import Network, Node
from service.values import Layout, TensorSpec

LAYOUTS: dict[Roles, Layout] = {
    ("N", "C", "H", "W"): "NCHW",
    ("N", "H", "W", "C"): "NHWC",
    ("N", "C"): "NC",
}
CHANNELS_OF_PICTURES = (1, 3, 4)


def find_axes(network: Network) -> dict[str, Axes]:
    """The axes of every tensor that depends on an input and whose rank is known."""
    axes = {s.name: whole_axes(_input_roles(network, s), network.shape(s.name)) for s in network.inputs}
    for node, made in _follow(network, axes):
        for name in node.makes:
            fitting = _fitting(made, network.shape(name))
            if fitting is not None:
                axes[name] = fitting
    return axes


def find_roles(network: Network) -> dict[str, Roles]:
    """The roles of the axes of every tensor that depends on an input and whose rank is known."""
    return {name: roles_of(axes) for name, axes in find_axes(network).items()}


def input_layout(network: Network, name: str) -> Layout | None:
    """The layout of one input: how its axes reach the first Conv or pooling, else by its shape."""
    specs = [spec for spec in network.inputs if spec.name == name]
    return layout_of(_input_roles(network, specs[0])) if specs else None


def layout_of(roles: Roles | None) -> Layout | None:
    """The layout's name, None for anything but NCHW, NHWC and NC."""
    return LAYOUTS.get(roles) if roles is not None else None


def _input_roles(network: Network, spec: TensorSpec) -> Roles:
    shape = network.shape(spec.name) or spec.shape or ()
    found = _anchored(network, spec.name, shape)
    if found is not None:
        return found
    return _by_shape(shape) if len(shape) == 4 else (None,) * len(shape)


def _by_shape(shape: Shape) -> Roles:
    first, last = (shape[i] in CHANNELS_OF_PICTURES for i in (1, 3))
    if first == last:
        return (None,) * 4
    return ("N", "C", "H", "W") if first else ("N", "H", "W", "C")


def _anchored(network: Network, name: str, shape: Shape) -> Roles | None:
    """Follow numbered axes to the first operator that says what they are."""
    numbers = tuple(str(i) for i in range(len(shape)))
    axes: dict[str, Axes] = {name: whole_axes(numbers, shape)}
    for node, made in _follow(network, axes):
        data = roles_of(axes[node.inputs[0]]) if node.inputs and node.inputs[0] in axes else None
        order = _order(node, len(data)) if data else None
        if data is not None and order is not None and len(data) == len(order):
            meaning = {label: role for label, role in zip(data, order, strict=True) if label}
            return tuple(meaning.get(number) for number in numbers)
        for output in node.makes:
            if made is not None:
                axes[output] = made
    return None


def _order(node: Node, rank: int) -> Roles | None:
    if node.domain not in KNOWN_DOMAINS:
        return None
    if node.op in ORDERED and not node.attributes.get("channels_last"):
        return ordered_roles(rank)
    return ("N", "C") if node.op == "Gemm" and not node.attributes.get("transA") else None


def _follow(network: Network, axes: Mapping[str, Axes]) -> Iterator[tuple[Node, Axes | None]]:
    """Each node that reads a tensor of known axes, and the axes that it makes; the caller stores them."""
    values: dict[str, Sequence[Any]] = {}
    for node in network.nodes:
        first = axes.get(node.inputs[0]) if node.inputs else None
        value = shape_value(ShapeStep(node, roles_of(first) if first else None, network, values))
        if value is not None:
            values[node.outputs[0]] = value
        if any(name in axes for name in node.data_inputs):
            rule = RULES.get(node.op) if node.domain in KNOWN_DOMAINS else None
            yield node, rule(Step(node, axes, network, values)) if rule else None


def _fitting(axes: Axes | None, shape: Shape | None) -> Axes | None:
    """The axes where they fit the shape's rank, with its sizes; else none for each axis."""
    if shape is None or axes is None or len(axes) != len(shape):
        return axes if shape is None else whole_axes((None,) * len(shape), shape)
    if same_sizes(axes, shape):
        return axes
    return tuple(_resized(axes, i, size) for i, size in enumerate(shape))


def _resized(axes: Axes, index: int, size: int | None) -> Axis:
    """An axis whose size may differ from what the rule said, as for the second output of Split."""
    if sizes_of(axes)[index] == (size or 0):
        return axes[index]
    role = roles_of(axes)[index]
    is_stepped = role in ("H", "W") and place_of(axes, role or "") == index and axes[index][0].step != 1
    return whole(None if is_stepped else role, size)
