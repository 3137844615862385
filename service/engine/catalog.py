"""Which models and versions exist, which are loaded, and loading one exactly once."""

import functools
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.engine.loaded import LoadedModel
from service.errors import (
    ConfigurationError,
    ModelError,
    ModelFailed,
    ModelNotFound,
    ServiceError,
    VersionNotFound,
)

State = Literal["unloaded", "loading", "ready", "failed"]
Load = Callable[[str, str, Path, Path], LoadedModel]
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VERSION_NAME = re.compile(r"[0-9]{1,18}")
MODEL_FILE = "model.onnx"
log = logging.getLogger("featuremaps.catalog")


@dataclass(frozen=True)
class Summary:
    """One model as `list_models` shows it."""

    name: str
    versions: tuple[str, ...]
    default_version: str | None
    state: State
    reason: str | None


class Version:
    """One version of a model: loaded once, however many ask, by whoever asks first."""

    def __init__(self, name: str, version: str, file: Path, folder: Path, load: Load) -> None:
        self.version = version
        self.state: State = "unloaded"
        self.reason: str | None = None
        self._load = functools.partial(load, name, version, file, folder)
        self._lock = threading.Lock()
        self._loading: Future[LoadedModel] | None = None

    def get(self) -> LoadedModel:
        """The loaded model; loads it in the caller's thread or waits for who does.

        Raises:
            ModelFailed: it does not load; the reason is kept and not tried again.
        """
        with self._lock:
            mine = self._loading is None
            loading = self._loading = self._loading or Future()
        if mine:
            self._run(loading)
        return loading.result()

    def peek(self) -> LoadedModel | None:
        """The model where it is ready, without loading it."""
        loading = self._loading
        return loading.result() if loading and self.state == "ready" else None

    def fail(self, reason: str) -> None:
        """Mark as failed before anything was read."""
        self._loading = Future()
        self._settle(self._loading, ModelFailed(reason))

    def _run(self, loading: Future[LoadedModel]) -> None:
        self.state = "loading"
        try:
            model = self._load()
        except ServiceError as error:
            self._settle(loading, error)
        except Exception as error:  # A file from outside must not take the others down with it.
            log.exception("model does not load")
            unexpected = ModelFailed("the model does not load, for a reason that the log holds")
            unexpected.__cause__ = error
            self._settle(loading, unexpected)
        else:
            self.state = "ready"
            loading.set_result(model)

    def _settle(self, loading: Future[LoadedModel], error: ServiceError) -> None:
        self.state, self.reason = "failed", error.detail
        loading.set_exception(error)


class Entry:
    """A model with its versions, highest first."""

    def __init__(self, name: str, versions: Iterable[Version], reason: str | None = None) -> None:
        self.name = name
        self.versions = sorted(versions, key=lambda version: int(version.version), reverse=True)
        self.reason = reason

    def default(self) -> LoadedModel:
        """The highest version that loads.

        Raises:
            ModelFailed: none does; the reason is the highest's.
        """
        for version in self.versions:
            try:
                return version.get()
            except ModelError:
                continue
        raise ModelFailed(f"model {self.name!r} failed: {self._failure()}")

    def exactly(self, number: str) -> LoadedModel:
        """One version by its number.

        Raises:
            VersionNotFound, ModelFailed
        """
        for version in self.versions:
            if version.version == number:
                try:
                    return version.get()
                except ModelError as error:
                    detail = f"model {self.name!r} version {number} failed: {version.reason}"
                    raise ModelFailed(detail) from error
        known = [version.version for version in self.versions]
        raise VersionNotFound(
            f"model {self.name!r} has no version {number!r}; it has {', '.join(known) or 'none'}",
            suggestions=known,
        )

    def peek(self, number: str | None) -> LoadedModel | None:
        """The model where its version is ready, so that nobody waits in vain for a thread."""
        for version in self.versions:
            if number in (None, version.version) and version.state != "failed":
                return version.peek()
        return None

    def summary(self) -> Summary:
        """State and default version: of the highest that did not fail."""
        alive = next((v for v in self.versions if v.state != "failed"), None)
        numbers = tuple(version.version for version in reversed(self.versions))
        if alive is None:
            return Summary(self.name, numbers, None, "failed", self._failure())
        return Summary(self.name, numbers, alive.version, alive.state, self._failed_versions())

    def _failure(self) -> str:
        return self.reason or next((v.reason for v in self.versions if v.reason), None) or "no version"

    def _failed_versions(self) -> str | None:
        failed = [f"version {v.version}: {v.reason}" for v in self.versions if v.state == "failed"]
        return "; ".join(failed) or None


class Catalog:
    """All models of all repositories, by name. Scanning reads names only; nothing is loaded by it."""

    def __init__(self, paths: Iterable[Path], load: Load) -> None:
        self._entries: dict[str, Entry] = {}
        for path in paths:
            for entry in _scan(path, load):
                if entry.name in self._entries:
                    raise ConfigurationError(f"two of the given paths hold a model named {entry.name!r}")
                self._entries[entry.name] = entry

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every model, failed ones included."""
        return self._entries

    def entry(self, name: str) -> Entry:
        """One model by its name.

        Raises:
            ModelNotFound
        """
        if (entry := self._entries.get(name)) is None:
            names = sorted(self._entries)
            raise ModelNotFound(
                f"no model {name!r}; there are: {', '.join(names[:20]) or 'none'} (list_models shows all)",
                suggestions=names[:20],
            )
        return entry

    def get(self, name: str, version: str | None) -> LoadedModel:
        """The model, loading it where it is not; blocks meanwhile.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed
        """
        entry = self.entry(name)
        return entry.default() if version is None else entry.exactly(version)

    def load_all(self) -> None:
        """Load the default version of every model, one after another."""
        for entry in self._entries.values():
            try:
                entry.default()
            except ModelError:
                log.warning("model %s failed: %s", entry.name, entry.summary().reason)


def _scan(path: Path, load: Load) -> Iterable[Entry]:
    if path.is_file():
        return [_single_file(path, load)]
    if not path.is_dir():
        raise ConfigurationError(f"models: {path} is neither a repository folder nor an .onnx file")
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    return [_from_folder(folder, path.resolve(), load) for folder in folders]


def _single_file(path: Path, load: Load) -> Entry:
    """An .onnx file by itself: its stem is the name, its version 1; no model.toml is read."""
    nowhere = path.parent / f"{path.name}.d"
    return _checked(path.stem, [Version(path.stem, "1", path, nowhere, load)])


def _from_folder(folder: Path, root: Path, load: Load) -> Entry:
    versions = []
    for sub in folder.iterdir():
        if sub.is_dir() and VERSION_NAME.fullmatch(sub.name):
            file = _model_file(sub)
            version = Version(folder.name, sub.name, file, folder, load)
            if not file.resolve().is_relative_to(root):
                version.fail("the model is a link that leaves the repository")
            versions.append(version)
    return _checked(folder.name, versions)


def _model_file(version: Path) -> Path:
    """Triton keeps a model with external data in a folder called model.onnx."""
    file = version / MODEL_FILE
    return file / MODEL_FILE if file.is_dir() else file


def _checked(name: str, versions: list[Version]) -> Entry:
    reason = None
    if not MODEL_NAME.fullmatch(name):
        reason = f"a model's name matches {MODEL_NAME.pattern}"
    elif not versions:
        reason = "its folder holds no version: a folder named by a number with model.onnx in it"
    if reason:
        for version in versions:
            version.fail(reason)
    return Entry(name, versions, reason)
