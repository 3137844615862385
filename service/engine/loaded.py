"""One model in memory: its layers, its recipe, and running just what some layers need."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from service.engine import manifest as manifests
from service.engine.batching import Asked, check_batch, run_together, without_batch
from service.engine.execution import Examples, Execution
from service.engine.filters import Filters, find_filters
from service.engine.graph import Graph, read
from service.engine.heads import class_weights, find_head
from service.engine.images import Images, one_a_row
from service.engine.layers.axes import input_layout
from service.engine.manifest import Manifest
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime, Stop
from service.engine.selection import LayerTable
from service.engine.tables import Shapes, Tables, describe
from service.errors import (
    InvalidParameter,
    ModelFailed,
    ModelNeedsConstants,
    RequestError,
    ServiceError,
)
from service.values import (
    NO_REDUCTION,
    Array,
    Identity,
    Layer,
    Parts,
    Plan,
    Preprocessing,
    Reduction,
    Step,
    TensorSpec,
)

Outcome = dict[str, Array] | Exception


class LoadedModel:
    """A model that can run; every method but `run` and `layers` is cheap."""

    def __init__(
        self,
        name: str,
        version: str,
        graph: Graph,
        manifest: Manifest,
        folder: Path,
        runtime: Runtime,
        plans: PlanCache,
    ) -> None:
        self._graph = graph
        self._runtime = runtime
        self.manifest = manifest
        self.labels = manifests.read_labels(folder, manifest)
        self.constants = manifests.constants(manifest, graph.inputs)
        self.image_input: TensorSpec | None = None
        self.recipe: Preprocessing | None = None
        self.image_input, self.no_image_reason = self._find_image_input()
        self.recipe = manifests.preprocessing(manifest, self.image_input) if self.image_input else None
        recipe_digest = manifests.digest(self.recipe, manifest)
        self.identity = Identity(name, version, graph.digest, recipe_digest)
        served = self._input_shapes(self.recipe.size if self.recipe else None)
        self._tables = Tables(graph, runtime, self.image_input, served)
        self._execution = Execution(graph, self._tables.network, runtime, plans, self.identity)
        self._device = self._execution.device
        self._images = Images(self._execution, self._examples)

    @property
    def provider(self) -> str:
        """The execution provider: cpu or cuda."""
        return self._runtime.provider

    @property
    def graph_optimization(self) -> str:
        """all or off."""
        return self._runtime.optimization

    @property
    def tf32(self) -> bool:
        """Whether a GPU rounds to TF32 in convolutions."""
        return self._runtime.tf32

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's true inputs; the image's carries its layout."""
        image = self.image_input
        return tuple(image if image and s.name == image.name else s for s in self._graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The declared outputs."""
        return self._graph.outputs

    @cached_property
    def first_input(self) -> str:
        """The input that takes the image; where there is none, the first of the graph's."""
        return self.image_input.name if self.image_input else self._graph.inputs[0].name

    @cached_property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The declared outputs that are tensors; None stands for an axis that the inputs decide."""
        return self._tables.output_specs()

    def image_spec(self) -> TensorSpec:
        """The input that takes the photograph.

        Raises:
            ModelNeedsConstants: there is none, or further inputs have no constants.
        """
        if self.image_input is None:
            raise ModelNeedsConstants(self.no_image_reason)
        return self.image_input

    def recipe_at(self, size: tuple[int, int] | None) -> Preprocessing:
        """The preprocessing at the served size, or at `size` where the input is dynamic.

        Raises:
            InvalidParameter: the graph fixes another size.
        """
        spec = self.image_spec()
        assert self.recipe is not None
        if size is None or size == self.recipe.size:
            return self.recipe
        height, width = _sides(spec)
        if (height or size[0], width or size[1]) != size:
            fixed = f"{height or 'any'}x{width or 'any'}"
            raise InvalidParameter(
                f"size={size[0]}x{size[1]} does not fit: the input of this model is fixed to {fixed}",
                parameter="size",
            )
        return manifests.at_size(self.recipe, size)

    def layers(
        self, size: tuple[int, int] | None = None, others: Mapping[str, Array] | None = None, images: int = 1
    ) -> LayerTable:
        """Every layer for one image of `size` (H, W), the served size without it.

        `others` are the values of further inputs that come with `images` images, as for `run`.

        Raises:
            InvalidParameter: the graph fixes another size.
            ShapeMismatch: the model does not run at that size, or with these.
        """
        if self.image_input is not None:
            size = self.recipe_at(size).size
        if not others and (self.recipe is None or size == self.recipe.size):
            return self._tables.served
        rows = one_a_row(self.inputs, others or {}, images)
        more = {n: (1, *v.shape[1:]) if n in rows else v.shape for n, v in (others or {}).items()}
        return self._tables.at({**self._input_shapes(size), **more})

    def layers_for(self, shapes: Shapes) -> LayerTable:
        """Every layer for inputs of these shapes, of a model that takes no images.

        Raises:
            ShapeMismatch: the model does not run on these.
        """
        return self._tables.at({**self._input_shapes(None), **shapes})

    def run(
        self,
        tensor: Array,
        layers: Sequence[Layer],
        stop: Stop | None = None,
        others: Mapping[str, Array] | None = None,
        parts: Parts | None = None,
    ) -> dict[str, Array]:
        """Compute these layers for a tensor (N, ...) of the first input, and nothing that they do not need.

        Several images run one by one, on a device in batches where that was found to give what single
        runs give; their maps lie along the batch axis. `others` are further inputs' values, before the
        manifest's constants: one whose first side is free and that holds as many rows as there are images
        has a row for each. `parts` are what `parts_of` gave. A model that takes no images runs once, on
        tensors as they are.

        Raises:
            ShapeMismatch: several images, and a layer without a batch axis; or the runtime could not, on
                shapes that are not those that the model was loaded with.
            ModelFailed: the runtime could not.
            Stopped: `stop` was set meanwhile.
        """
        names, feeds = _computed(layers), {**self._feeds(tensor), **(others or {})}
        values = {self.first_input: tensor}
        try:
            if self.image_input is None:
                values |= self._execution.run(feeds, names, stop=stop)
            elif names:
                check_batch(len(tensor), layers)
                values |= self._images.run(self._asked(feeds, layers, parts or {}, others or {}), stop)
        except ModelFailed as error:
            self._tables.blame(error, feeds)
            raise
        return {layer.name: values[layer.name] for layer in layers}

    def parts_of(self, layers: Sequence[Layer], reduction_of: Callable[[str], Reduction]) -> Parts:
        """What of layers' reductions `run` can do on the device, before maps are copied from it."""
        device = self._device
        if not device.is_apart or self.image_input is None:
            return {}
        computed = [layer for layer in layers if layer.index >= 0]
        parts = {layer.name: device.part_of(layer, reduction_of(layer.name)) for layer in computed}
        return {name: part for name, part in parts.items() if part != NO_REDUCTION}

    def run_together(
        self, jobs: Sequence[tuple[Array, Sequence[Layer], Parts]], stop: Stop | None = None
    ) -> list[Outcome]:
        """Run several jobs with images of one shape, sharing batches of what they have in common.

        Each gets what `run` gives it, or the error that it raises.

        Raises:
            Stopped: `stop` was set meanwhile.
        """
        shared: dict[int, Asked] = {}
        for i, (tensor, layers, parts) in enumerate(jobs if len(jobs) > 1 else ()):
            asked = self._asked(self._feeds(tensor), layers, parts, {})
            fits = without_batch(asked.images, layers) is None
            if asked.layers and fits and self._images.is_separable(asked, stop):
                shared[i] = asked
        self._device.call(run_together, self._execution, list(shared.values()), stop)
        return [
            self._shared_outcome(shared[i], job[1]) if i in shared else self._outcome(*job, stop)
            for i, job in enumerate(jobs)
        ]

    def _shared_outcome(self, asked: Asked, layers: Sequence[Layer]) -> Outcome:
        if isinstance(asked.error, ModelFailed):
            return self._tables.told(asked.error, asked.values)
        found = {asked.carrier: asked.tensor, **asked.found}
        return asked.error or {layer.name: found[layer.name] for layer in layers}

    def _outcome(self, tensor: Array, layers: Sequence[Layer], parts: Parts, stop: Stop | None) -> Outcome:
        try:
            return self.run(tensor, layers, stop, parts=parts)
        except ServiceError as error:
            return error

    def _asked(
        self, feeds: Mapping[str, Array], layers: Sequence[Layer], parts: Parts, others: Mapping[str, Array]
    ) -> Asked:
        computed, images = [layer for layer in layers if layer.index >= 0], len(feeds[self.first_input])
        rows = one_a_row(self.inputs, others, images)
        return Asked(feeds, self.first_input, computed, images, parts, frozenset(others), rows)

    def plan(self, layers: Sequence[Layer], known: Container[str] = ()) -> Plan:
        """The steps that compute these layers for one image from what is known already, if anything is."""
        return self._execution.plan(_computed(layers), known)

    def run_step(
        self, step: Step, tensor: Array, values: Mapping[str, Array], stop: Stop | None = None
    ) -> Mapping[str, Array]:
        """Compute what one step of a plan makes for one image.

        Raises:
            ModelFailed, ShapeMismatch, Stopped: as `run`.
        """
        feeds = self._feeds(tensor)
        try:
            return self._execution.run_step(step, {**values, **feeds}, stop=stop)
        except ModelFailed as error:
            self._tables.blame(error, feeds)
            raise

    def class_weights(self, layer: str, target: int) -> Array:
        """How much each channel of a layer counts for a class (Zhou et al. 2016): (C,) float32.

        Raises:
            NotDrawable: the network does not end in a pooling and one linear layer, or pools another layer.
            InvalidParameter: there is no such class.
        """
        return class_weights(find_head(self._graph, self._tables.network, layer), layer, target)

    def filters(self, layer: str) -> Filters:
        """The weights of the convolution that made a layer.

        Raises:
            NoFilters: no convolution made it.
        """
        return find_filters(self._graph, self._tables.network, layer)

    def total_macs(self, table: LayerTable, layers: Sequence[Layer]) -> int | None:
        """Multiply-accumulates of everything that these layers of a table need, each node once."""
        needed = self._graph.needed([layer.name for layer in layers])
        makes = {name for i in needed for name in self._graph.nodes[i].makes}
        macs = [layer.macs for layer in table.layers if layer.name in makes]
        return None if None in macs else sum(m or 0 for m in macs)

    def warm(self) -> None:
        """Compile the segments of the declared outputs and the manifest's warm layers, and run all once.

        Raises:
            ModelFailed: the model does not run, or has none of these layers.
        """
        known = self.layers().by_name
        outputs = _computed(known[name] for name in self.outputs if name in known)
        if self.image_input is None:
            self._execution.compile(outputs)
            return
        shape = self._input_shapes(self.recipe_at(None).size)[self.image_input.name]
        feeds = self._feeds(np.zeros(shape, self.image_input.dtype))
        self._execution.run(feeds, outputs)
        for words in self.manifest.warm:
            self._execution.fuse(self._warm_layers([words] if isinstance(words, str) else words), feeds)

    def release(self) -> None:
        """Drop what is compiled; a run that needs it compiles it anew."""
        self._execution.release()

    def _warm_layers(self, words: Sequence[str]) -> tuple[str, ...]:
        try:
            return _computed(self.layers().select(words))
        except RequestError as error:
            raise ModelFailed(f"model.toml: warm: {error.detail}") from error

    def _feeds(self, tensor: Array) -> dict[str, Array]:
        return {**self.constants, self.first_input: tensor}

    def _examples(self, image_shape: tuple[int, ...]) -> Examples:
        """Two images of noise."""
        spec = self.image_spec()
        noise = np.random.default_rng(0).integers(0, 256, (2, *image_shape))
        pair = (noise if spec.dtype == "uint8" else noise / 255).astype(spec.dtype)
        return [self._feeds(image[None]) for image in pair], self._feeds(pair)

    def _find_image_input(self) -> tuple[TensorSpec | None, str]:
        """The one input without a constant that has four axes, or the reason why there is none."""
        free = [spec for spec in self._graph.inputs if spec.name not in self.constants]
        if len(free) != 1:
            names = ", ".join(repr(spec.name) for spec in free[:8])
            return None, (
                f"this model has {len(free)} inputs ({names}); give all but the image's their values "
                "under [constants] in its model.toml, or use /v2"
            )
        spec = free[0]
        if spec.shape is None or len(spec.shape) != 4:
            return None, f"the input {spec.name!r} is no image: it does not have four axes; use /v2"
        if spec.shape[0] not in (None, 1):
            return (
                None,
                f"this file fixes its batch to {spec.shape[0]}: export it with one or with any; or use /v2",
            )
        layout = input_layout(describe(self._graph, self._runtime, self._input_shapes(None)), spec.name)
        if layout not in ("NCHW", "NHWC"):
            return None, f"the channel axis of the input {spec.name!r} is not known; use /v2"
        return replace(spec, layout=layout), ""

    def _input_shapes(self, size: tuple[int, int] | None) -> dict[str, tuple[int, ...]]:
        """Every input's shape for one image; an axis that nothing fixes is 1."""
        shapes = {s.name: tuple(d or 1 for d in s.shape) for s in self._graph.inputs if s.shape is not None}
        shapes |= {name: value.shape for name, value in self.constants.items()}
        if size and self.image_input and self.recipe:
            channels = len(self.recipe.mean)
            nchw = self.image_input.layout == "NCHW"
            shapes[self.image_input.name] = (1, channels, *size) if nchw else (1, *size, channels)
        return shapes


def load(
    name: str,
    version: str,
    file: Path,
    folder: Path,
    runtime: Runtime,
    plans: PlanCache,
    read: Callable[[Path], Graph] = read,
) -> LoadedModel:
    """Read, check, compile and run a model once.

    Raises:
        ModelFailed: with the reason.
    """
    graph = read(file)
    model = LoadedModel(name, version, graph, manifests.read_manifest(folder), folder, runtime, plans)
    model.warm()
    return model


def _computed(layers: Iterable[Layer]) -> tuple[str, ...]:
    """The names of all but the input, which is there already."""
    return tuple(layer.name for layer in layers if layer.index >= 0)


def _sides(spec: TensorSpec) -> tuple[int | None, int | None]:
    assert spec.shape is not None
    first = 2 if spec.layout == "NCHW" else 1
    return spec.shape[first], spec.shape[first + 1]
