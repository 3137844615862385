"""Several requests for different layers of one network share a batch of the part that they have in common.

Each asks for its own layers, so each has its own plan; a step that stands in several plans is run once,
on the images of all of them. One request failing harms none of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.engine.device import to_host
from service.engine.execution import Execution, Values
from service.engine.runner import Stop, Value
from service.errors import ModelFailed, ShapeMismatch
from service.parameters import NO_REDUCTION, Reduction
from service.values import Array, Layer, Parts, Step


@dataclass(eq=False)
class Asked:
    """One request: its inputs, of which `carrier` holds `images` images, and its layers.

    `found` are the layers' maps in the end, after their `parts` of a reduction. `others` are the inputs that
    it has values of its own for, and `rows` those of them that hold a row for each image.
    """

    values: Values
    carrier: str
    layers: Sequence[Layer]
    images: int
    parts: Parts = field(default_factory=dict)
    others: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()
    found: dict[str, Array] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def tensor(self) -> Array:
        """The images (N, ...)."""
        tensor: Array = self.values[self.carrier]
        return tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Its layers' names."""
        return tuple(layer.name for layer in self.layers)


def run_together(execution: Execution, requests: Sequence[Asked], stop: Stop | None = None) -> None:
    """Compute every request's layers; each gets its `found` or its `error`.

    All of them have to be separable, with images of one shape.

    Raises:
        Stopped: `stop` was set meanwhile.
    """
    plans = {request: execution.plan(request.names).steps for request in requests}
    steps = execution.in_order({step for steps in plans.values() for step in steps})
    batch = _Batch(execution, stop)
    for index, step in enumerate(steps):
        sharing = [request for request in requests if step in plans[request] and request.error is None]
        batch.run(step, sharing)
        batch.keep({name for later in steps[index + 1 :] for name in later.reads})


@dataclass(frozen=True, eq=False)
class _Rows:
    """A tensor that several requests' images were computed in: each has its own rows of it.

    Padding, if any, follows them, up to `size`. Without it a single owner's may be anything.
    """

    value: Value
    of: Mapping[Asked, range]
    size: int

    @property
    def is_own(self) -> bool:
        """Whether all of it belongs to one request."""
        return len(self.of) == 1 and next(iter(self.of)).images == self.size


class _Batch:
    """What is known so far of every request; values stay where they lie until they are handed out."""

    def __init__(self, execution: Execution, stop: Stop | None) -> None:
        self._execution = execution
        self._device = execution.device
        self._stop = stop
        self._made: dict[tuple[Asked, str], _Rows] = {}

    def run(self, step: Step, sharing: Sequence[Asked]) -> None:
        """Run one step for those who need it, at one time where it hands over maps."""
        if sum(request.images for request in sharing) > 1 and self._execution.hands_over_maps(step):
            self._run_shared(step, sharing)
        else:
            for request in sharing:
                self._run_alone(step, request)

    def keep(self, names: set[str]) -> None:
        """Forget what is not among these."""
        self._made = {(request, name): rows for (request, name), rows in self._made.items() if name in names}

    def _run_shared(self, step: Step, sharing: Sequence[Asked]) -> None:
        spans = _spans(sharing)
        images, shape = sum(map(len, spans.values())), sharing[0].tensor.shape
        size = self._device.padded(images, shape)
        try:
            reads = {name: self._joined(name, sharing, size) for name in step.reads}
            self._run(step, reads, size, spans)
        except ModelFailed:
            for request in sharing:
                self._run_alone(step, request)

    def _run_alone(self, step: Step, request: Asked) -> None:
        reads = {name: self._own(name, request) for name in step.reads}
        try:
            self._run(step, reads, request.images, {request: range(request.images)})
        except ModelFailed as error:
            request.error = error

    def _run(self, step: Step, reads: Values, size: int, spans: Mapping[Asked, range]) -> None:
        made = self._execution.run_step(step, reads, batch=size, stop=self._stop, stay=step.makes)
        for name, value in made.items():
            rows = _Rows(value, spans, size)
            self._made |= {(request, name): rows for request in spans}
            self._hand_out(name, rows)

    def _hand_out(self, name: str, rows: _Rows) -> None:
        """Copy a layer to those who asked for it, and with each reduction at one time."""
        groups: dict[Reduction, list[Asked]] = {}
        for request in rows.of:
            if name in request.names:
                groups.setdefault(request.parts.get(name, NO_REDUCTION), []).append(request)
        for part, group in groups.items():
            layer = next(layer for layer in group[0].layers if layer.name == name)
            found = self._reduced(self._of(rows, group), layer, part)
            for request, span in _spans(group).items():
                # A copy: else whoever reads slowly would hold the maps of all.
                own = found if len(group) == 1 else found[span.start : span.stop].copy()
                request.found[name] = own

    def _reduced(self, value: Value, layer: Layer, part: Reduction) -> Array:
        return to_host(value) if part == NO_REDUCTION else self._device.reduce(value, layer, part)

    def _joined(self, name: str, sharing: Sequence[Asked], size: int) -> Value:
        """A tensor with the rows of all, in their order, and padding up to a size."""
        held = [self._made.get((request, name)) for request in sharing]
        first = held[0]
        if first is None and name != sharing[0].carrier:
            return sharing[0].values[name]  # A constant of the model.
        if first is None or any(rows is not first for rows in held):
            return _stacked([to_host(self._own(name, request)) for request in sharing], size)
        if list(first.of) == list(sharing):
            return first.value
        return self._of(first, sharing, size)

    def _own(self, name: str, request: Asked) -> Value:
        rows = self._made.get((request, name))
        return request.values[name] if rows is None else self._of(rows, [request])

    def _of(self, rows: _Rows, requests: Sequence[Asked], size: int = 0) -> Value:
        """The rows of some of its owners, padded by the first up to a size."""
        if rows.is_own:
            return rows.value
        taken = [row for request in requests for row in rows.of[request]]
        return self._device.take(rows.value, taken + taken[:1] * (size - len(taken)))


def _stacked(values: Sequence[Array], size: int) -> Array:
    """Along the batch axis, padded by the first row up to a size."""
    padding = [values[0][:1]] * (size - sum(map(len, values)))
    return np.concatenate([*values, *padding]) if len(values) > 1 or padding else values[0]


def _spans(requests: Sequence[Asked]) -> dict[Asked, range]:
    ends = np.cumsum([request.images for request in requests]).tolist()
    return {r: range(end - r.images, end) for r, end in zip(requests, ends, strict=True)}


def check_batch(images: int, layers: Sequence[Layer]) -> None:
    """Refuse several images where the maps of a layer cannot be laid side by side.

    Raises:
        ShapeMismatch
    """
    if (layer := without_batch(images, layers)) is not None:
        raise ShapeMismatch(
            f"{images} images were sent, but layer {layer.name!r} has no batch axis to lay "
            "their maps along: ask for it with one image",
            limit=1,
            actual=images,
        )


def without_batch(images: int, layers: Sequence[Layer]) -> Layer | None:
    """A layer that so many images cannot be asked for at once."""
    return next((x for x in layers if x.batch_axis is None), None) if images > 1 else None
