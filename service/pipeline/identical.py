"""Which requests ask the same: then one computation answers all of them."""

from collections.abc import Hashable

from service.values import Job

# Comparing longer bodies would hold up the event loop; they are sent seldom, and twice hardly ever.
LONGEST_COMPARED_BYTES = 1 << 20
SAMPLE_BYTES = 64


class _Body:
    """The bytes of a request as a key: compared in full, hashed by their length and end."""

    def __init__(self, parts: tuple[bytes, ...]) -> None:
        self._parts = parts
        self._hash = hash(tuple((len(part), part[-SAMPLE_BYTES:]) for part in parts))
        self._comparable = sum(map(len, parts)) <= LONGEST_COMPARED_BYTES

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Body) and self._comparable and self._parts == other._parts


def identical(job: Job) -> Hashable:
    """Equal for jobs whose answers are equal; the deadline is each request's own."""
    body = _Body((*job.images, job.tensor or b"", job.inference.body if job.inference else b""))
    what = (job.tensor is None, job.layers, job.reduction, job.compress, job.coding, job.size)
    return (*what, job.image_id, job.owner, body)
