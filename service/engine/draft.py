"""New versions of models, written into a repository under a temporary name until they are kept."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.engine.catalog import MODEL_FILE
from service.errors import RepositoryNotWritable, VersionExists

# Catalogues pass over folders that begin with a dot.
PREFIX = ".upload-"
# What a process left that was ended while it wrote.
STALE_AFTER_S = 3600.0


class Draft:
    """A version that is being written: it is served by nobody, and seen by none that scans."""

    def __init__(self, paths: Sequence[Path], name: str, version: str) -> None:
        """Begin one in the repository that holds the model, or in the first.

        Raises:
            VersionExists, RepositoryNotWritable
        """
        repository = _repository(paths, name)
        self.model_folder = repository / name
        self._target = self.model_folder / version
        self._version = f"model {name!r} has a version {version}"
        self.size = 0
        self._digest = hashlib.sha256()
        if self._target.exists():
            raise self._exists()
        _remove_stale(repository)
        with _writing():
            self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=repository))
            self._folder.chmod(0o755)
            self._stream = self.file.open("xb")

    @property
    def file(self) -> Path:
        """Where it lies for now."""
        return self._folder / MODEL_FILE

    @property
    def digest(self) -> str:
        """SHA-256 of what was written."""
        return self._digest.hexdigest()

    def write(self, part: bytes) -> None:
        """Add to it.

        Raises:
            RepositoryNotWritable
        """
        with _writing():
            self._stream.write(part)
        self._digest.update(part)
        self.size += len(part)

    def finish(self) -> None:
        """Everything is written, and lies on the disk.

        Raises:
            RepositoryNotWritable
        """
        with _writing(), self._stream:
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def keep(self) -> None:
        """Give it its name, in one step.

        Raises:
            VersionExists: somebody else was quicker.
            RepositoryNotWritable
        """
        with _writing():
            self.model_folder.mkdir(exist_ok=True)
            try:
                self._folder.rename(self._target)
            except OSError as error:
                if self._target.exists():
                    raise self._exists() from error
                raise

    def drop(self) -> None:
        """Remove what was not kept."""
        self._stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _exists(self) -> VersionExists:
        return VersionExists(f"{self._version} already: versions are never overwritten, choose a higher one")


def _repository(paths: Sequence[Path], name: str) -> Path:
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        raise RepositoryNotWritable("single files are served here: there is no repository to write into")
    if any(path.stem == name for path in paths if path.is_file()):
        raise RepositoryNotWritable(f"model {name!r} is a single file outside of any repository")
    return next((folder for folder in folders if (folder / name).is_dir()), folders[0])


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or "the system refuses"
        raise RepositoryNotWritable(f"the repository of models cannot be written: {reason}") from error


def _remove_stale(repository: Path) -> None:
    for folder in repository.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > STALE_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
