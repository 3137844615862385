"""The layers of one model at whatever shapes its inputs are asked for."""

import threading
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace

from cachetools import LRUCache, cached

from service.engine.graph import Graph
from service.engine.image_input import ImageInput
from service.engine.layers.listing import input_layer_row, list_layers
from service.engine.layers.modules import find_modules
from service.engine.nodes import Network
from service.engine.runner import Runtime
from service.engine.selection import LayerTable
from service.engine.shapes import Shapes, describe
from service.errors import ModelFailed, ShapeMismatch
from service.values import Array, Layer, TensorSpec

# Layer tables are small; an input of dynamic size can be asked for at any number of sizes.
TABLES_KEPT = 16


class Tables:
    """The table at the `served` shapes is kept for good, of others those that were asked for last."""

    def __init__(self, graph: Graph, runtime: Runtime, image: ImageInput | None, served: Shapes) -> None:
        self._graph = graph
        self._runtime = runtime
        self._image = image
        self._group = image.group if image else 1
        self._served_shapes = served
        self.network = self._described(served)
        self._modules = find_modules(self.network)
        self.served = self._table(self.network)
        # With a condition a table is made once for all who ask for it, and nobody waits for other tables.
        kept = LRUCache[Hashable, LayerTable](TABLES_KEPT)
        self._other = cached(kept, condition=threading.Condition())(self._table_at)

    def _described(self, served: Shapes) -> Network:
        """Inputs that take no images may not fit together with free sides of 1: then shapes stay open."""
        try:
            return describe(self._graph, self._runtime, served)
        except ModelFailed:
            if self._image is not None:
                raise
            return describe(self._graph, self._runtime, {})

    def at(self, shapes: Shapes) -> LayerTable:
        """Every layer for inputs of these shapes.

        Raises:
            ShapeMismatch: the graph cannot be described at them.
        """
        if shapes == self._served_shapes:
            return self.served
        return self._other(*sorted(shapes.items()))

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The declared outputs that are tensors; None stands for an axis that the inputs decide."""
        inferred = self._graph.network({}).tensors
        told = {n: (self._graph.declared[n], inferred.get(n)) for n in self.served.outputs}
        return tuple(_output_spec(self.served.by_name[name], specs) for name, specs in told.items())

    def blame(self, error: ModelFailed, feeds: Mapping[str, Array]) -> None:
        """Tell the caller where a run failed because of what it was given.

        Raises:
            ShapeMismatch: the inputs have other shapes than those that the model was loaded with.
        """
        # A name for what is raised would be held by this frame, which its traceback holds.
        if error.at_run and self._others(feeds):
            raise self._mismatch(error, self._others(feeds)) from error

    def told(self, error: ModelFailed, feeds: Mapping[str, Array]) -> ModelFailed | ShapeMismatch:
        """What `blame` raises, or else the failure itself."""
        others = self._others(feeds) if error.at_run else {}
        return self._mismatch(error, others) if others else error

    def _others(self, feeds: Mapping[str, Array]) -> Shapes:
        image = self._image.spec.name if self._image else None
        shapes = {n: (self._group, *v.shape[1:]) if n == image else v.shape for n, v in feeds.items()}
        return {n: shape for n, shape in shapes.items() if shape != self._served_shapes.get(n)}

    def _mismatch(self, error: ModelFailed, shapes: Shapes) -> ShapeMismatch:
        given = {name: list(shape) for name, shape in shapes.items()}
        said = ", ".join(f"{name!r} of shape {shape}" for name, shape in given.items())
        allowed = {n: list(self._served_shapes[n]) for n in given if n in self._served_shapes}
        return ShapeMismatch(
            f"the model does not run on {said}: {error.detail}", given=given, allowed=allowed
        )

    def _table_at(self, *shapes: tuple[str, tuple[int, ...]]) -> LayerTable:
        try:
            return self._table(describe(self._graph, self._runtime, dict(shapes)))
        except ModelFailed as error:
            raise self._mismatch(error, dict(shapes)) from error

    def _table(self, network: Network) -> LayerTable:
        inputs = [input_layer_row(self._image.spec, network)] if self._image else []
        layers = list_layers(network, self._modules)
        if self._group > 1:
            inputs, layers = [_per_image(row) for row in inputs], tuple(map(_per_image, layers))
        return LayerTable(layers, self._graph.outputs, inputs, self._modules)


def _per_image(layer: Layer) -> Layer:
    """A layer of a file with a fixed batch, as it is for one image."""
    if layer.batch_axis != 0 or not layer.shape:
        return layer
    return replace(layer, shape=(1, *layer.shape[1:]))


def _output_spec(layer: Layer, known: Iterable[TensorSpec | None]) -> TensorSpec:
    """Of the first that knows the axes; else only the rank is told, as far as the table knows it."""
    for spec in known:
        if spec is not None and spec.shape is not None:
            return replace(spec, dtype=layer.dtype)
    return TensorSpec(layer.name, layer.dtype, (None,) * len(layer.shape) if layer.shape else None)
