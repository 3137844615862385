"""A model's files together: its graph, its manifest, its labels, and what they say of its inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.engine import manifest as manifests
from service.engine.graph import Graph, read
from service.engine.image_input import ImageInput, default_shapes, find_image_input
from service.engine.manifest import Manifest
from service.values import Array


@dataclass(frozen=True)
class ModelFiles:
    """What a model is made of: its graph, its manifest, and what these say together."""

    graph: Graph
    manifest: Manifest
    labels: tuple[str, ...]
    constants: Mapping[str, Array]
    image: ImageInput | None
    no_image_reason: str


def read_files(file: Path, folder: Path, read: Callable[[Path], Graph] = read) -> ModelFiles:
    """Read and check a model's files.

    Raises:
        ModelFailed: with the reason.
    """
    graph, manifest = read(file), manifests.read_manifest(folder)
    labels = manifests.read_labels(folder, manifest)
    constants = manifests.constants(manifest, graph.inputs)
    shapes = default_shapes(graph.inputs) | {name: value.shape for name, value in constants.items()}
    image, reason = find_image_input(graph.inputs, manifest, shapes, graph.network)
    return ModelFiles(graph, manifest, labels, constants, image, reason)
