"""Which of the workers of one service this process is."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """`worker` of `workers`, started for the `starts`-th time; in `folder` each has a socket of its own."""

    worker: int = 0
    workers: int = 1
    starts: int = 1
    folder: Path | None = None

    @property
    def socket(self) -> Path | None:
        """Where the others ask this one."""
        return self._socket(self.worker)

    @property
    def others(self) -> tuple[Path, ...]:
        """Where this one asks the others."""
        found = (self._socket(worker) for worker in range(self.workers) if worker != self.worker)
        return tuple(path for path in found if path is not None)

    def _socket(self, worker: int) -> Path | None:
        return self.folder / f"{worker}.sock" if self.folder else None


ALONE = Place()
