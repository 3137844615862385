"""One export under test: what the engine says of it, and what the oracles do."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from service.engine.loaded import LoadedModel
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.values import Array
from tests.builders import known
from tests.zoo import networks, shapes
from tests.zoo.cache import exported, remembered
from tests.zoo.oracles import changes, gradients, macs, positive, stages, uncut

# Plain, depthwise, gated, SAME padding, transformer, detector, U-Net, pyramid; small ones of each kind.
SAMPLE = [
    *(("resnet18", v) for v in ("fixed", "dynamo")),
    *(("mobilenetv3_small_100", v) for v in ("free", "dynamo")),
    *(("legacy_seresnet18", v) for v in ("fixed", "dynamo")),
    *(("tf_efficientnet_b0", v) for v in ("free", "dynamo")),
    *(("vit_tiny_patch16_224", v) for v in ("fixed", "dynamo")),
    *(("decoupled_detector", v) for v in ("free-hw", "dynamo-hw")),
    *(("unet_resize", v) for v in ("free-hw", "dynamo-hw")),
    *(("pyramid", v) for v in ("free-hw", "dynamo-hw")),
]
# With a free height and width, tried in addition to the size that a network was exported with.
OTHER_SIZES = ((96, 128), (224, 224))
PLAN_BYTES = 4 << 30


def chosen() -> list[tuple[str, str]]:
    """The exports that ZOO_NETWORKS names: `sample`, or networks and exports; without it, all."""
    words = os.environ.get("ZOO_NETWORKS", "").split()
    if words == ["sample"]:
        return SAMPLE
    return [(n, v) for n, v in networks.EXPORTS if not words or n in words or f"{n}.{v}" in words]


@dataclass(frozen=True)
class Subject:
    """An export; everything is made when it is first asked for."""

    network: str
    variant: str

    @property
    def name(self) -> str:
        """As its folder is called."""
        return f"{self.network}.{self.variant}"

    @cached_property
    def path(self) -> Path:
        """The model file."""
        return exported(self.network, self.variant)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) that the network was exported with."""
        if self.network in shapes.CREATE:
            return shapes.INPUT
        graph = onnx.load(self.path, load_external_data=False).graph
        return tuple(side.dim_value for side in graph.input[0].type.tensor_type.shape.dim[1:])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) at which the export runs, that of its making first."""
        return [self.shape[1:], *(OTHER_SIZES if self.variant.endswith("-hw") else ())]

    def image(self, size: tuple[int, int] | None = None) -> Array:
        """Noise (1, C, H, W), at another size where one is given."""
        return networks.images((3, *(size or self.shape[1:])))[:1].numpy()

    @cached_property
    def loaded(self) -> LoadedModel | Exception:
        """The engine's model, or what it failed with."""
        try:
            runtime = Runtime(optimization="off")
            return load(self.name, "1", self.path, self.path.parent, runtime, PlanCache(PLAN_BYTES))
        except Exception as error:  # Whatever it is, the report names it.
            return error

    @property
    def model(self) -> LoadedModel:
        """The engine's model.

        Fails the test where it did not load.
        """
        if isinstance(self.loaded, Exception):
            pytest.fail("does not load", pytrace=False)
        return self.loaded

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The file with its weights."""
        return uncut.read(self.path)

    @cached_property
    def tensors(self) -> dict[str, Array]:
        """Every tensor of the whole graph on `image()`."""
        return uncut.Uncut(self.proto).run(self.image())

    def truth(self, size: tuple[int, int]) -> dict[str, Any]:
        """`shapes` of all tensors and `outputs`, fingerprints of the declared ones, at a size."""
        return self._of_file(f"truth/{size[0]}x{size[1]}", lambda: self._truth(size), uncut)

    def _truth(self, size: tuple[int, int]) -> dict[str, Any]:
        graph = uncut.Uncut(self.proto)
        values = graph.run(self.image(size))
        prints = {name: uncut.fingerprint(values[name]) for name in graph.outputs}
        return {"shapes": uncut.shapes(values), "outputs": prints}

    @property
    def macs(self) -> int:
        """By PyTorch's counter."""
        return self._of_network("macs", lambda: macs.count(self.network), macs)

    @property
    def changes(self) -> dict[str, list[changes.Extents]]:
        """By `noise` and `positive`, for each block, what it changes."""
        return self._of_file(
            "changes", lambda: changes.measure(self.proto, self.image()), changes, positive, uncut
        )

    @property
    def stages(self) -> list[dict[str, Any]]:
        """timm's features: `reduction`, `channels` and the file's `layers` that hold the value."""
        return self._of_file("stages", self._stages, stages)

    def _stages(self) -> list[dict[str, Any]]:
        return [
            {
                "reduction": s.reduction,
                "channels": s.channels,
                "layers": stages.holders(s.value, self.tensors),
            }
            for s in stages.timm_stages(self.network)
        ]

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        """By module, the `cell` and `pixels` of `gradients.fields` and the `layers` that hold its value."""
        found = self._of_network("fields", lambda: gradients.fields(self.network), gradients)
        layers = self._of_file("modules", lambda: self._module_layers(list(found)), gradients, stages)
        return {module: {**field, "layers": layers[module]} for module, field in found.items()}

    def _module_layers(self, modules: list[str]) -> dict[str, list[str]]:
        values = gradients.module_values(self.network, modules)
        return {module: stages.holders(value, self.tensors) for module, value in values.items()}

    def _of_network(self, kind: str, work: Callable[[], Any], *oracles: ModuleType) -> Any:
        """What the network alone decides."""
        return remembered(kind, self.network, work, *_sources(networks, shapes, *oracles))

    def _of_file(self, kind: str, work: Callable[[], Any], *oracles: ModuleType) -> Any:
        """What this export decides, its weights included."""
        files = sorted(self.path.parent.iterdir())
        return remembered(kind, self.name, work, *files, *_sources(networks, *oracles))


def _sources(*modules: ModuleType) -> list[Path]:
    return [Path(known(module.__file__)) for module in modules]


def digits(value: Array) -> str:
    """A value's fingerprint."""
    return uncut.fingerprint(np.asarray(value))
