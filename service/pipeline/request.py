"""One request on its way: what is asked, the computation that answers it, and the keys of equal requests."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cached_property
from typing import Any, Protocol

from service.engine.loaded import LoadedModel
from service.engine.runner import Stop
from service.parameters import NO_REDUCTION, Reduction
from service.pipeline.admission import Permit
from service.pipeline.stopwatch import Stopwatch
from service.values import (
    Chunk,
    Coding,
    FeatureMap,
    Identity,
    Layer,
    Limits,
    Parts,
    Picture,
    Prepared,
    Window,
)

Windows = Mapping[str, tuple[Window, ...]]
# Comparing longer bodies would hold up the event loop; equal ones of that length are rare.
LONGEST_COMPARED_BYTES = 1 << 20
SAMPLE_BYTES = 64


class Decides(Enum):
    """What a field of a request decides; a field without a mark decides the maps."""

    NOTHING = 0  # Whether and when there is an answer, but not which.
    ANSWER = 1  # How the maps are selected, reduced and encoded.
    MAPS = 2


DECIDES = "decides"
NOTHING, ONLY_ANSWER = {DECIDES: Decides.NOTHING}, {DECIDES: Decides.ANSWER}


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder made of the maps."""

    chunks: tuple[Chunk, ...]
    media_type: str
    extension: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Answer(Protocol):
    """One kind of answer with its options: a frozen dataclass, since it is part of the request's key."""

    def check(
        self, computation: "Computation", layers: Sequence[Layer], images: int, windows: Windows
    ) -> None:
        """Refuse what cannot be answered, or would be too large.

        Called before anything is decoded and, where a region decides the size, again once it is known.

        Raises:
            RequestError
        """

    def finish(self, ready: "Ready", maps: Sequence[FeatureMap]) -> Encoded:
        """Reduce and encode, in a thread."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """What every request asks: layers of a model, what is done to their maps, and how they are answered.

    `version` None is the highest that loads; `size` (H, W) None the served one; `coding` the content coding
    of the answer.
    """

    # Which model these mean is found out first, and its identity is part of every key.
    model: str = field(metadata=NOTHING)
    version: str | None = field(default=None, metadata=NOTHING)
    timeout_s: float = field(default=60.0, metadata=NOTHING)
    answer: Answer = field(metadata=ONLY_ANSWER)
    layers: tuple[str, ...] = field(default=(), metadata=ONLY_ANSWER)
    reduction: Reduction = field(default=NO_REDUCTION, metadata=ONLY_ANSWER)
    coding: Coding | None = field(default=None, metadata=ONLY_ANSWER)
    size: tuple[int, int] | None = None

    def reduction_of(self, layer: str) -> Reduction:
        """What is done to a layer's map."""
        return self.reduction

    def key(self, model: Identity) -> Hashable:
        """Equal for requests whose answers are the same bytes."""
        return (type(self).__name__, model, *map(_comparable, self._deciding(Decides.ANSWER)))

    def maps_key(self, model: Identity) -> Hashable:
        """Equal for requests that are answered from the same maps."""
        return (type(self).__name__, model, *map(_comparable, self._deciding(Decides.MAPS)))

    def text_key(self) -> str:
        """What decides the answer of the model, as text that is the same in every process."""
        return f"{type(self).__name__} {self._deciding(Decides.ANSWER)!r}"

    def _deciding(self, least: Decides) -> tuple[Any, ...]:
        marks = {f.name: f.metadata.get(DECIDES, Decides.MAPS) for f in fields(self)}
        return tuple(getattr(self, name) for name, mark in marks.items() if mark.value >= least.value)


class BodyRequest(Request, ABC):
    """A request that brings along everything that the network reads."""

    @abstractmethod
    def prepare(self, computation: "Computation") -> "Ready":
        """Do everything that comes before the network, in one thread.

        Raises:
            RequestError: any of them; for an image with its `index`.
            Stopped: the computation was cancelled.
        """


class _Body:
    """The bytes of a request as a key: compared in full, hashed by their lengths and ends."""

    def __init__(self, parts: tuple[bytes, ...]) -> None:
        self._parts = parts
        self._hash = hash(tuple((len(part), part[-SAMPLE_BYTES:]) for part in parts))
        self._comparable = sum(map(len, parts)) <= LONGEST_COMPARED_BYTES

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Body) and self._comparable and self._parts == other._parts


def _comparable(value: Any) -> Hashable:
    parts = value if isinstance(value, tuple) else (value,)
    is_body = bool(parts) and all(isinstance(part, bytes) for part in parts)
    found: Hashable = _Body(parts) if is_body else value
    return found


@dataclass(frozen=True, eq=False)
class Computation:
    """The work for one request and for all equal ones that come meanwhile.

    `timer` counts what is done, `cancel` is set when no request waits for it, and what is held meanwhile is
    reserved with `permit`.
    """

    request: Request
    model: LoadedModel
    limits: Limits
    runtime: str
    timer: Stopwatch
    permit: Permit
    cancel: Stop = field(default_factory=Stop)

    def check(self, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Refuse what cannot be answered.

        Raises:
            RequestError
        """
        self.request.answer.check(self, layers, images, windows)


@dataclass(frozen=True)
class Chosen:
    """The layers that a request gets, and those that it does not get, with the reasons."""

    layers: tuple[Layer, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Source:
    """What the maps are computed from; pictures are kept of a single image only."""

    prepared: Prepared
    pictures: tuple[Picture, ...] = ()

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensor and of the pictures, of which Pillow holds four a pixel."""
        pixels = sum(picture.size[0] * picture.size[1] for picture in self.pictures)
        return int(self.prepared.tensor.nbytes) + 4 * pixels


@dataclass(frozen=True, eq=False)
class Ready:
    """A request whose layers exist and whose answer fits, with what the network will see.

    `windows` holds the cells of each layer for each image, where a region was asked for. `largest_bytes` are
    those of the largest map that the network can make of one image; to find them out takes long. `left_out`
    are layers that `all` and the like would mean and that cannot be answered, with the reasons.
    """

    computation: Computation
    layers: tuple[Layer, ...]
    source: Source
    windows: Windows = field(default_factory=dict)
    largest_bytes: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def request(self) -> Request:
        """What is asked."""
        return self.computation.request

    @property
    def model(self) -> LoadedModel:
        """Of which model."""
        return self.computation.model

    @property
    def timer(self) -> Stopwatch:
        """Where its stages are counted."""
        return self.computation.timer

    @property
    def prepared(self) -> Prepared:
        """What the network sees."""
        return self.source.prepared

    @property
    def images(self) -> int:
        """How many lie in the tensor; of a model that takes none, its one set of inputs counts as one."""
        return len(self.prepared.tensor) if self.model.image_input else 1

    @cached_property
    def parts(self) -> Parts:
        """What of the layers' reductions is done where their maps lie."""
        if not self.images:
            return {}  # Nothing runs.
        return self.model.parts_of(self.layers, self.request.reduction_of)
