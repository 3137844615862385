"""The layer catalogue: from a network's nodes to one row for each tensor that depends on its input."""

from collections.abc import Container
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from service.engine.layers.axes import find_axes, layout_of
from service.engine.layers.costs import Cost, elements, find_costs, image_shape
from service.engine.layers.features import find_features
from service.engine.layers.geometry import UNKNOWN_FIELD, Geometry, find_geometry
from service.engine.layers.modules import Modules, find_modules
from service.engine.layers.parts import Roles, roles_of
from service.engine.layers.stages import Activity, find_stages
from service.engine.nodes import Network, Node
from service.values import Layer, ReceptiveField, TensorSpec


@dataclass(frozen=True)
class _Facts:
    """What was found out about one tensor."""

    roles: Roles | None
    geometry: Geometry | None
    cost: Cost
    stage: int | None
    feature: int | None
    active: bool
    reads: tuple[str, ...]
    module: str | None
    is_variable: bool = False


def list_layers(network: Network, modules: Modules | None = None) -> tuple[Layer, ...]:
    """Describe every tensor that a node makes and that depends on an input, in graph order.

    Sequences and maps, whose dtype is "", are left out; a tensor of which nothing is known is not. Behind
    them stand the declared outputs that depend on no input, such as a detector's anchors. `modules` are the
    network's, which are the same at every shape; without them they are found.
    """
    modules = find_modules(network) if modules is None else modules
    axes = find_axes(network)
    roles = {name: roles_of(own) for name, own in axes.items()}
    geometry = find_geometry(network, axes)
    costs = find_costs(network, roles)
    activity = Activity(network)
    stages = find_stages(network, geometry, activity)
    features = find_features(network, geometry, activity)
    dependent = network.dependent()
    rows: list[Layer] = []
    for node in network.nodes:
        reads = tuple(dict.fromkeys(name for name in node.reads if name in dependent))
        for name in node.makes:
            spec = network.tensors.get(name)
            if name not in costs or (spec is not None and not spec.dtype):
                continue
            facts = _Facts(
                roles.get(name),
                geometry.get(name),
                costs[name],
                stages.get(name),
                features.get(name),
                activity.active(name),
                reads,
                modules.path_of(name),
                name in network.variable,
            )
            rows.append(_row(node, spec or TensorSpec(name, "", None), len(rows), facts))
    rows += _constant_outputs(network, dependent, len(rows))
    return tuple(rows)


def _constant_outputs(network: Network, dependent: Container[str], first: int) -> list[Layer]:
    makers = {name: node for node in network.nodes for name in node.makes}
    names = [name for name in network.outputs if name not in dependent]
    specs = [spec for name in names if (spec := network.tensors.get(name)) is not None and spec.dtype]
    facts = _Facts(None, None, Cost(0, 0, 0), None, None, False, (), None)
    stored = Node("", "Constant", "", (), ())
    return [_row(makers.get(s.name, stored), s, first + i, facts) for i, s in enumerate(specs)]


def _row(node: Node, spec: TensorSpec, index: int, facts: _Facts) -> Layer:
    place, labels = facts.geometry, facts.roles or ()
    channel_axis = labels.index("C") if "C" in labels else None
    fits = channel_axis is not None and spec.shape is not None and channel_axis < len(spec.shape)
    return Layer(
        name=spec.name,
        index=index,
        node=node.name,
        op=node.op,
        shape=spec.shape,
        dtype=spec.dtype,
        layout=layout_of(facts.roles),
        channel_axis=channel_axis,
        batch_axis=0 if labels[:1] == ("N",) else None,
        channels=spec.shape[channel_axis] if fits and spec.shape and channel_axis is not None else None,
        reduction=place.reduction if place else None,
        receptive_field=place.receptive_field if place else UNKNOWN_FIELD,
        centre=place.centre if place else None,
        macs=facts.cost.macs,
        params=facts.cost.params,
        cumulative_macs=facts.cost.cumulative_macs,
        bytes_per_image=_bytes(spec, facts.roles),
        stage=facts.stage,
        feature=facts.feature,
        has_variable_shape=facts.is_variable,
        after_activation=facts.active,
        reads=facts.reads,
        module=facts.module,
    )


def _bytes(spec: TensorSpec, roles: Roles | None) -> int | None:
    """Text has no fixed size; nor has what numpy does not know by name."""
    count = elements(image_shape(spec.shape, roles))
    itemsize = _itemsize(spec.dtype)
    return None if count is None or itemsize is None else count * itemsize


def _itemsize(dtype: str) -> int | None:
    if dtype in ("", "str"):
        return None
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 2 if dtype == "bfloat16" else None


def input_layer_row(spec: TensorSpec, network: Network) -> Layer:
    """The network's input as a layer, for who asks for it by its own name."""
    shape = network.shape(spec.name)
    assert shape is not None
    channel_axis = 1 if spec.layout == "NCHW" else 3
    elements = int(np.prod([size or 1 for size in shape]))
    one = Fraction(1)
    return Layer(
        name=spec.name,
        index=-1,
        node="",
        op="Input",
        shape=shape,
        dtype=spec.dtype,
        layout=spec.layout,
        channel_axis=channel_axis,
        batch_axis=0,
        channels=shape[channel_axis],
        reduction=(one, one),
        receptive_field=ReceptiveField((1, 1), (0, 0), "exact"),
        centre=(Fraction(0), Fraction(0)),
        macs=0,
        params=0,
        cumulative_macs=0,
        bytes_per_image=elements * np.dtype(spec.dtype).itemsize,
        stage=None,
        after_activation=False,
    )
