"""Which models and versions exist, which are loaded, and loading one exactly once."""

import contextlib
import functools
import logging
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    NotReady,
    ServiceError,
    VersionNotFound,
)

State = Literal["unloaded", "loading", "ready", "failed"]
Load = Callable[[str, str, Path, Path], LoadedModel]
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LONGEST_NAME = 100
VERSION_NAME = re.compile(r"[0-9]{1,18}")
MODEL_FILE = "model.onnx"
# Name, last change and size of every file that a version is made of.
Stamp = tuple[tuple[str, int, int], ...]
LEAVES = (
    "the model is a link out of the repository, as in a hub's cache: `cp -L` it, or serve the blob's folder"
)
WITHDRAWN = "it was unloaded, and serves nothing until it is loaded again"
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
        self.name = name
        self.version = version
        self.state: State = "unloaded"
        self.reason: str | None = None
        self._stamp = _stamp(file, folder)
        self.load_seconds: float | None = None
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
        if loading.exception() is not None:
            # Anew: an error that is raised again and again keeps the frames of all who asked.
            raise ModelFailed(self.reason or "")
        return loading.result()

    def peek(self) -> LoadedModel | None:
        """The model where it is ready, without loading it."""
        loading = self._loading
        return loading.result() if loading and self.state == "ready" else None

    def loading(self) -> Future[LoadedModel] | None:
        """To be waited for and not cancelled, where somebody loads it at this moment."""
        return self._loading if self.state == "loading" else None

    def is_as(self, other: "Version") -> bool:
        """Whether both are of the same files, as far as names, times and sizes tell."""
        return (self.version, self._stamp) == (other.version, other._stamp)

    def fail(self, reason: str) -> None:
        """Mark as failed before anything was read."""
        self._loading = Future()
        self._settle(self._loading, reason)

    def _run(self, loading: Future[LoadedModel]) -> None:
        self.state = "loading"
        start = time.perf_counter()
        try:
            model = self._load()
        except ServiceError as error:
            log.warning("model %s version %s failed: %s", self.name, self.version, error.detail)
            self._settle(loading, error.detail)
        except Exception:  # A file from outside must not take the others down with it.
            log.exception("model %s version %s does not load", self.name, self.version)
            self._settle(loading, "the model does not load, for a reason that the log holds")
        else:
            self.load_seconds = time.perf_counter() - start
            self.state = "ready"
            loading.set_result(model)

    def _settle(self, loading: Future[LoadedModel], reason: str) -> None:
        self.state, self.reason = "failed", reason
        loading.set_exception(ModelFailed(reason))


class Entry:
    """A model with its versions, highest first; one that is `withdrawn` serves none until it is loaded."""

    def __init__(
        self, name: str, versions: Iterable[Version], reason: str | None = None, *, withdrawn: bool = False
    ) -> None:
        self.name = name
        self.versions = sorted(versions, key=lambda version: int(version.version), reverse=True)
        self.reason = reason
        self._withdrawn = withdrawn

    def default(self) -> LoadedModel:
        """The highest version that loads.

        Raises:
            ModelFailed: none does; the reason is the highest's.
            NotReady: it was unloaded.
        """
        self._check()
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
            NotReady: the model was unloaded.
        """
        self._check()
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
        """The model where its version is ready, so that nobody waits in vain for a thread.

        Raises:
            NotReady: it was unloaded.
        """
        self._check()
        for version in self.versions:
            if number in (None, version.version) and version.state != "failed":
                return version.peek()
        return None

    def loading(self, number: str | None) -> Future[LoadedModel] | None:
        """What `peek` will find, where somebody loads it at this moment."""
        for version in self.versions:
            if number in (None, version.version) and version.state != "failed":
                return version.loading()
        return None

    def is_loading(self, number: str | None) -> bool:
        """Whether somebody loads this version at this moment."""
        return any(v.state == "loading" for v in self.versions if number in (None, v.version))

    def summary(self) -> Summary:
        """State and default version: of the highest that did not fail."""
        numbers = tuple(version.version for version in reversed(self.versions))
        if self._withdrawn:
            return Summary(self.name, numbers, None, "unloaded", WITHDRAWN)
        alive = next((v for v in self.versions if v.state != "failed"), None)
        if alive is None:
            return Summary(self.name, numbers, None, "failed", self._failure())
        return Summary(self.name, numbers, alive.version, alive.state, self._failed_versions())

    def keep_unchanged(self, before: "Entry") -> None:
        """Take over from an older entry the versions of the same files that did not fail."""
        alive = [version for version in before.versions if version.state != "failed"]
        self.versions = [next((v for v in alive if v.is_as(new)), new) for new in self.versions]

    def loaded(self) -> Sequence[LoadedModel]:
        """Every version that is in memory."""
        return [model for version in self.versions if (model := version.peek()) is not None]

    def _check(self) -> None:
        if self._withdrawn:
            raise NotReady(f"model {self.name!r}: {WITHDRAWN}")

    def _failure(self) -> str:
        return self.reason or next((v.reason for v in self.versions if v.reason), None) or "no version"

    def _failed_versions(self) -> str | None:
        failed = [f"version {v.version}: {v.reason}" for v in self.versions if v.state == "failed"]
        return "; ".join(failed) or None


class Catalog:
    """All models of all repositories, by name. Scanning reads names only; nothing is loaded by it."""

    def __init__(self, paths: Iterable[Path], load: Load) -> None:
        self._paths = tuple(paths)
        self._load = load
        # The names of models that somebody changes: one change of a model at a time, others beside it.
        self._changing: set[str] = set()
        self._changed = threading.Condition()
        # Replaced as a whole: others iterate over it meanwhile.
        self._entries: dict[str, Entry] = {}
        given: dict[str, Path] = {}
        for path in self._paths:
            for entry in _scan(path, load):
                if entry.name in self._entries:
                    both = f"{entry.name!r}: {given[entry.name]} and {path}"
                    raise ConfigurationError(f"two paths hold a model named {both}")
                self._entries[entry.name], given[entry.name] = entry, path

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
            raise self._not_found(name)
        return entry

    def get(self, name: str, version: str | None) -> LoadedModel:
        """The model, loading it where it is not; blocks meanwhile.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed, NotReady
        """
        entry = self.entry(name)
        return entry.default() if version is None else entry.exactly(version)

    def load(self, name: str) -> LoadedModel:
        """Look for a model's versions anew and load its highest that loads; blocks meanwhile.

        What serves goes on serving until then, and for good where nothing better loads. Versions whose
        files have not changed stay as they are; those that failed are tried again.

        Raises:
            ModelNotFound: none of the paths holds it.
            ModelFailed: no version of it loads.
        """
        with self._change(name):
            found, before = self._found(name), self._entries.get(name)
            if found is None:
                raise self._not_found(name)
            if before is not None:
                found.keep_unchanged(before)
            try:
                model = found.default()
            except ModelError:
                if before is None or not before.loaded():
                    self._replace(found)
                raise
            self._replace(found)
            return model

    def unload(self, name: str) -> None:
        """Stop serving a model and drop what is compiled of it; requests that run go on to their end.

        Raises:
            ModelNotFound
        """
        with self._change(name):
            self.entry(name)
            found = self._found(name)
            self._replace(Entry(name, found.versions if found else (), withdrawn=True))

    @contextlib.contextmanager
    def _change(self, name: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: name not in self._changing)
            self._changing.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._changing.discard(name)
                self._changed.notify_all()

    def _found(self, name: str) -> Entry | None:
        """A model as it lies on disk now, in the first of the paths that holds it."""
        if MODEL_NAME.fullmatch(name):
            for path in self._paths:
                if path.is_file() and _name_of(path) == name:
                    return _single_file(path, self._load)
                if (path / name).is_dir():
                    return _from_folder(path / name, path.resolve(), self._load)
        return None

    def _replace(self, entry: Entry) -> None:
        with self._changed:
            before = self._entries.get(entry.name)
            self._entries = {**self._entries, entry.name: entry}
        stay = {model.identity for model in entry.loaded()}
        for model in before.loaded() if before else ():
            if model.identity not in stay:
                model.release()

    def _not_found(self, name: str) -> ModelNotFound:
        names = sorted(self._entries)
        return ModelNotFound(
            f"no model {name!r}; there are: {', '.join(names[:20]) or 'none'} (list_models shows all)",
            suggestions=names[:20],
        )


def _scan(path: Path, load: Load) -> Iterable[Entry]:
    if path.is_file():
        return [_single_file(path, load)]
    if not path.is_dir():
        raise ConfigurationError(f"models: {path} is neither a repository folder nor an .onnx file")
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    return [_from_folder(folder, path.resolve(), load) for folder in folders]


def _single_file(path: Path, load: Load) -> Entry:
    """An .onnx file by itself: its stem gives the name, its version is 1; no model.toml is read."""
    nowhere, name = path.parent / f"{path.name}.d", _name_of(path)
    log.log(logging.INFO if name != path.stem else logging.DEBUG, "%s is served as %s", path.name, name)
    return _checked(name, [Version(name, "1", path, nowhere, load)])


def _name_of(path: Path) -> str:
    """A model's name made from a file's: accents dropped, other characters that no name has as dashes."""
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._]+", "-", plain).strip("-._")[:LONGEST_NAME] or "model"


def _from_folder(folder: Path, root: Path, load: Load) -> Entry:
    versions = []
    for sub in folder.iterdir():
        if sub.is_dir() and VERSION_NAME.fullmatch(sub.name):
            file = _model_file(sub)
            version = Version(folder.name, sub.name, file, folder, load)
            if not file.resolve().is_relative_to(root):
                version.fail(LEAVES)
            versions.append(version)
    return _checked(folder.name, versions)


def _model_file(version: Path) -> Path:
    """Triton keeps a model with external data in a folder called model.onnx."""
    file = version / MODEL_FILE
    return file / MODEL_FILE if file.is_dir() else file


def _stamp(file: Path, folder: Path) -> Stamp:
    beside = [*folder.iterdir(), *file.parent.iterdir()] if folder.is_dir() else [file]
    stamps = []
    for path in sorted(beside):
        with contextlib.suppress(OSError):  # Somebody may be copying files at this moment.
            state = path.stat()
            stamps.append((str(path), state.st_mtime_ns, state.st_size))
    return tuple(stamps)


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
