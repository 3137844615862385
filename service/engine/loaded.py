"""One model in memory: its layers, its recipe, and running just what some layers need."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from service.engine import manifest as manifests
from service.engine.batching import Asked, check_batch, run_together, without_batch
from service.engine.execution import Examples, Execution
from service.engine.filters import Filters, find_filters
from service.engine.heads import class_weights, find_head
from service.engine.image_input import (
    ImageInput,
    at_size,
    check_size_fits,
    default_shapes,
)
from service.engine.images import Images, one_a_row
from service.engine.model_files import ModelFiles
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime, Stop
from service.engine.selection import LayerTable
from service.engine.shapes import Shapes
from service.engine.tables import Tables
from service.errors import (
    ImagesNotTaken,
    InvalidParameter,
    ModelFailed,
    RequestError,
    ServiceError,
)
from service.parameters import NO_REDUCTION, Reduction
from service.values import Array, Identity, Layer, Parts, Plan, Preprocessing, SizeSource, Step, TensorSpec

Outcome = dict[str, Array] | Exception


class LoadedModel:
    """A model that can run; every method but `run` and `layers` is cheap."""

    def __init__(
        self,
        name: str,
        version: str,
        files: ModelFiles,
        image: ImageInput | None,
        runtime: Runtime,
        plans: PlanCache,
    ) -> None:
        self._graph = graph = files.graph
        self._runtime = runtime
        self._image = image
        self.manifest, self.labels, self.constants = files.manifest, files.labels, files.constants
        self.no_image_reason = image.reason if image else files.no_image_reason
        recipe_digest = manifests.digest(self.recipe, self.manifest)
        self.identity = Identity(name, version, graph.digest, recipe_digest)
        served = self._input_shapes(image.size if image else None)
        self._tables = Tables(graph, runtime, image, served)
        self._execution = Execution(graph, self._tables.network, runtime, plans, self.identity)
        self._device = self._execution.device
        self._images = Images(self._execution, self._examples, self.first_input, self.group)

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
    def image_input(self) -> TensorSpec | None:
        """The input that takes images, None where there is none."""
        return self._image.spec if self._image else None

    @property
    def recipe(self) -> Preprocessing | None:
        """How images become the input's tensor, None where only tensors can be sent."""
        return self._image.preprocessing if self._image else None

    @property
    def size_source(self) -> SizeSource | None:
        """Where the served size comes from, None without an image input."""
        return self._image.size_source if self._image else None

    @property
    def group(self) -> int:
        """How many images run together because the file fixes its batch to that many; 1 elsewhere."""
        return self._image.group if self._image else 1

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's true inputs; the image's carries its layout."""
        image = self.image_input
        return tuple(
            replace(s, layout=image.layout) if image and s.name == image.name else s
            for s in self._graph.inputs
        )

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
        """The input that takes the photograph; its batch axis is free where groups of images run.

        Raises:
            ImagesNotTaken: there is none.
        """
        if self.image_input is None:
            raise ImagesNotTaken(self.no_image_reason)
        return self.image_input

    def image_shape(self) -> tuple[int, ...]:
        """The tensor's shape (1, C, H, W) or (1, H, W, C) for one image of the served size.

        Raises:
            ImagesNotTaken: there is no image input.
        """
        image = self._checked_image(None)
        return (1, *image.shape_at(image.size)[1:])

    def recipe_at(self, size: tuple[int, int] | None) -> Preprocessing:
        """The preprocessing at the served size, or at `size` where the input is dynamic.

        Raises:
            InvalidParameter: the graph fixes another size.
            ImagesNotTaken: images cannot be sent.
        """
        recipe = self._checked_image(size).preprocessing
        if recipe is None:
            raise ImagesNotTaken(self.no_image_reason)
        return recipe

    def _checked_image(self, size: tuple[int, int] | None) -> ImageInput:
        """The image input at a size, the served one without it."""
        if self._image is None:
            raise ImagesNotTaken(self.no_image_reason)
        if size is None or size == self._image.size:
            return self._image
        if problem := check_size_fits(self._image, size):
            raise InvalidParameter(problem, parameter="size")
        return at_size(self._image, size)

    def reads_of(self, layers: Sequence[Layer]) -> tuple[str, ...]:
        """The inputs of the graph that some layers need."""
        return self._execution.reads_of(tuple(layer.name for layer in layers))

    def layers(
        self, size: tuple[int, int] | None = None, others: Mapping[str, Array] | None = None, images: int = 1
    ) -> LayerTable:
        """Every layer for one image of `size` (H, W), the served size without it.

        `others` are the values of further inputs that come with `images` images, as for `run`.

        Raises:
            InvalidParameter: the graph fixes another size.
            ShapeMismatch: the model does not run at that size, or with these.
        """
        if self._image is not None:
            size = self._checked_image(size).size
        if not others and (self._image is None or size == self._image.size):
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
        if not device.is_apart or self.image_input is None or self.group > 1:
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
        shape = self._input_shapes(self._checked_image(None).size)[self.image_input.name]
        feeds = self._feeds(np.zeros(shape, self.image_input.dtype))
        complete = tuple(name for name in outputs if feeds.keys() >= set(self._execution.reads_of((name,))))
        self._execution.compile(outputs)
        self._execution.run(feeds, complete)
        for words in self.manifest.warm:
            self._execution.fuse(self._warm_layers([words] if isinstance(words, str) else words), feeds)

    def mixes_images(self) -> bool:
        """Whether the file fixes its batch, and images change each other's outputs in it.

        Raises:
            ModelFailed: the model does not run.
        """
        if self.group == 1:
            return False
        outputs = [name for name in self.outputs if name in self.layers().by_name]
        return not self._images.are_independent(tuple(outputs), self.image_shape()[1:])

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
        """Two images of noise, alone and as one batch."""
        spec = self.image_spec()
        values = np.random.default_rng(0).integers(0, 256, (2, *image_shape))
        pair = (values if spec.dtype == "uint8" else values / 255).astype(spec.dtype)
        return [self._feeds(image[None]) for image in pair], self._feeds(pair)

    def _input_shapes(self, size: tuple[int, int] | None) -> dict[str, tuple[int, ...]]:
        """Every input's shape for one image, or one group; an axis that nothing fixes is 1."""
        shapes = default_shapes(self._graph.inputs)
        shapes |= {name: value.shape for name, value in self.constants.items()}
        if size and self._image:
            shapes[self._image.spec.name] = self._image.shape_at(size)
        return shapes


def _computed(layers: Iterable[Layer]) -> tuple[str, ...]:
    """The names of all but the input, which is there already."""
    return tuple(layer.name for layer in layers if layer.index >= 0)
