"""Finding and loading models."""

import contextlib
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.engine.catalog import Catalog
from service.engine.loaded import LoadedModel
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.errors import (
    ConfigurationError,
    ModelError,
    ModelFailed,
    ModelNotFound,
    NotReady,
    VersionNotFound,
)
from tests.builders import put, small_cnn

RUNTIME, PLANS = Runtime(), PlanCache(1 << 30)


def load_model(name: str, version: str, file: Path, folder: Path) -> LoadedModel:
    return load(name, version, file, folder, RUNTIME, PLANS)


def load_all(catalog: Catalog) -> None:
    for entry in catalog.entries.values():
        with contextlib.suppress(ModelError, NotReady):
            entry.default()


def state(path: Path, name: str) -> tuple[str, str | None]:
    catalog = Catalog([path], load_model)
    load_all(catalog)
    summary = catalog.entry(name).summary()
    return summary.state, summary.reason


def test_scanning_loads_nothing(repository: Path) -> None:
    states = {e.name: e.summary().state for e in Catalog([repository], load_model).entries.values()}
    assert states == dict.fromkeys(["broken", "fixed", "reshaping", "small", "versions"], "unloaded")


def test_many_who_ask_at_once_load_once(repository: Path) -> None:
    loads, gate = [], threading.Barrier(4)

    def counted(*given: object) -> LoadedModel:
        loads.append(given)
        return load_model(*given)  # type: ignore[arg-type]

    catalog = Catalog([repository], counted)

    def ask() -> LoadedModel:
        gate.wait()
        return catalog.get("small", None)

    with ThreadPoolExecutor(4) as pool:
        models = {id(future.result()) for future in [pool.submit(ask) for _ in range(4)]}
    assert (len(loads), len(models)) == (1, 1)


def test_a_failed_load_is_kept_and_not_tried_again(repository: Path) -> None:
    catalog = Catalog([repository], load_model)
    for _ in range(2):
        with pytest.raises(ModelFailed, match="Git LFS"):
            catalog.get("broken", None)


def test_an_unknown_model_is_answered_with_those_there_are(repository: Path) -> None:
    with pytest.raises(ModelNotFound, match="small") as refusal:
        Catalog([repository], load_model).get("absent", None)
    assert "small" in refusal.value.extensions["suggestions"]


def test_an_unknown_version_is_answered_with_those_there_are(repository: Path) -> None:
    with pytest.raises(VersionNotFound, match="it has 2, 1"):
        Catalog([repository], load_model).get("versions", "3")


def test_a_version_asked_for_by_number_is_not_replaced_by_another(repository: Path) -> None:
    with pytest.raises(ModelFailed, match="version 2 failed"):
        Catalog([repository], load_model).get("versions", "2")


def test_one_file_is_a_repository_of_one(repository: Path) -> None:
    catalog = Catalog([repository / "small/1/model.onnx"], load_model)
    assert catalog.get("model", "1").identity.name == "model"


def test_triton_keeps_a_model_with_external_data_in_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "small", small_cnn())
    (tmp_path / "small/1/model.onnx").rename(tmp_path / "file")
    (tmp_path / "small/1/model.onnx").mkdir()
    (tmp_path / "file").rename(tmp_path / "small/1/model.onnx/model.onnx")
    assert state(tmp_path, "small") == ("ready", None)


def test_a_link_that_leaves_the_repository_is_refused(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", "m", small_cnn())
    (tmp_path / "inside/m/1").mkdir(parents=True)
    (tmp_path / "inside/m/1/model.onnx").symlink_to(outside)
    name, reason = state(tmp_path / "inside", "m")
    assert name == "failed"
    assert "cp -L" in (reason or "")


@pytest.mark.parametrize("name", ["-m", "a b", "m" * 101, "ü"])
def test_a_name_that_no_url_could_carry_is_listed_as_failed(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, small_cnn())
    assert state(tmp_path, name)[0] == "failed"


def test_a_folder_without_a_version_is_listed_as_failed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / ".git").mkdir()
    assert state(tmp_path, "empty")[0] == "failed"
    assert list(Catalog([tmp_path], load_model).entries) == ["empty"]


def test_two_models_of_one_name_are_an_error_at_start(repository: Path) -> None:
    with pytest.raises(ConfigurationError, match="two"):
        Catalog([repository, repository], load_model)


def test_a_path_that_is_nothing_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="neither"):
        Catalog([tmp_path / "absent"], load_model)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("bad/external_data_missing.onnx", "external data file 'mobilenet_v2_fp32.onnx.data' is missing"),
        ("bad/lfs_pointer_resnet18-v1-7.onnx", "Git LFS pointer"),
        ("bad/needs_contrib_superres.onnx", "an operator that onnxruntime does not have"),
        ("bad/no_opset_import_mnist.onnx", "no opset"),
        ("bad/truncated_1MB_squeezenet1.1_fp16.onnx", "truncated"),
        ("odd/mnist.ort", "onnxruntime's own format"),
    ],
)
def test_every_bad_file_fails_with_its_reason(test_data: Path, file: str, reason: str) -> None:
    path = test_data / "models" / file
    found, told = state(path, path.stem)
    assert found == "failed"
    assert reason in (told or "")


def test_an_output_that_is_no_tensor_does_not_keep_the_others_from_serving(test_data: Path) -> None:
    catalog = Catalog([test_data / "models/odd/mnist_winmltools_zipmap.onnx"], load_model)
    model = catalog.get("mnist_winmltools_zipmap", None)
    names = [layer.name for layer in model.layers().layers]
    assert "prediction" not in names
    assert len(names) > 10


def test_loading_finds_a_new_version_and_a_new_model(tmp_path: Path) -> None:
    put(tmp_path, "m", small_cnn())
    catalog = Catalog([tmp_path], load_model)
    load_all(catalog)
    put(tmp_path, "m", small_cnn(1, 32, 32), "2")
    put(tmp_path, "new", small_cnn())
    assert catalog.load("m").identity.version == "2"
    assert catalog.load("new") is catalog.get("new", None)
    assert sorted(catalog.entries) == ["m", "new"]


def test_loading_tries_again_what_failed(tmp_path: Path) -> None:
    put(tmp_path, "m", small_cnn()).write_bytes(b"not ONNX")
    catalog = Catalog([tmp_path], load_model)
    load_all(catalog)
    with pytest.raises(ModelFailed):
        catalog.load("m")
    put(tmp_path, "m", small_cnn())
    assert catalog.load("m").identity.name == "m"
    assert catalog.entry("m").summary().state == "ready"


def test_loading_keeps_a_version_of_the_same_files_and_replaces_any_other(
    tmp_path: Path,
) -> None:
    put(tmp_path, "m", small_cnn())
    catalog = Catalog([tmp_path], load_model)
    first = catalog.get("m", None)
    assert catalog.load("m") is first
    put(tmp_path, "m", small_cnn(1, 32, 32))
    assert catalog.load("m").identity.digest != first.identity.digest


def test_a_version_that_does_not_load_leaves_the_one_that_serves(tmp_path: Path) -> None:
    put(tmp_path, "m", small_cnn())
    catalog = Catalog([tmp_path], load_model)
    first = catalog.get("m", None)
    put(tmp_path, "m", small_cnn()).write_bytes(b"not ONNX")
    with pytest.raises(ModelFailed):
        catalog.load("m")
    assert catalog.get("m", None) is first


@pytest.mark.parametrize("name", ["absent", "../m", "m/1", "", "."])
def test_what_is_in_no_repository_is_not_loaded(tmp_path: Path, name: str) -> None:
    put(tmp_path, "m", small_cnn())
    with pytest.raises(ModelNotFound):
        Catalog([tmp_path], load_model).load(name)


def test_an_unloaded_model_serves_nothing_until_it_is_loaded(tmp_path: Path) -> None:
    put(tmp_path, "m", small_cnn())
    catalog = Catalog([tmp_path], load_model)
    load_all(catalog)
    catalog.unload("m")
    for version in (None, "1"):
        with pytest.raises(NotReady, match="unloaded"):
            catalog.get("m", version)
    assert catalog.entry("m").summary().state == "unloaded"
    load_all(catalog)
    catalog.load("m")
    assert catalog.get("m", "1").identity.name == "m"


def test_a_model_is_unloaded_while_another_loads_and_changes_of_one_follow_each_other(tmp_path: Path) -> None:
    put(tmp_path, "slow", small_cnn())
    put(tmp_path, "quick", small_cnn())
    begun, may_end = threading.Event(), threading.Event()

    def held(name: str, version: str, file: Path, folder: Path) -> LoadedModel:
        if name == "slow":
            begun.set()
            assert may_end.wait(60)
        return load_model(name, version, file, folder)

    catalog = Catalog([tmp_path], held)
    with ThreadPoolExecutor(3) as pool:
        try:
            first = pool.submit(catalog.load, "slow")
            assert begun.wait(60)
            pool.submit(catalog.unload, "quick").result(60)
            later = pool.submit(catalog.unload, "slow")
            with pytest.raises(TimeoutError):
                later.result(0.2)
        finally:
            may_end.set()
        assert first.result(60).identity.name == "slow"
        later.result(60)
    assert {n: e.summary().state for n, e in catalog.entries.items()} == dict.fromkeys(
        ("slow", "quick"), "unloaded"
    )


def test_unloading_frees_what_is_compiled_of_that_model_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path, name, small_cnn())
    plans = PlanCache(1 << 30)
    catalog = Catalog([tmp_path], lambda n, v, file, folder: load(n, v, file, folder, RUNTIME, plans))
    load_all(catalog)
    both = len(plans)
    catalog.unload("one")
    assert len(plans) == both // 2 > 0


def test_a_failed_model_keeps_nothing_of_those_who_ask_for_it(tmp_path: Path) -> None:
    """An error that is raised again holds the frames, and so the requests, of all who saw it."""
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "model.onnx").write_bytes(b"no model")
    catalog, asked = Catalog([tmp_path], load_model), []

    def ask() -> None:
        request = threading.Event()  # Anything that can be referred to weakly.
        asked.append(weakref.ref(request))
        with pytest.raises(ModelFailed):
            catalog.get("bad", "1")
        with pytest.raises(ModelFailed):
            catalog.get("bad", None)

    for _ in range(3):
        ask()
    gc.collect()
    assert [request() for request in asked] == [None] * 3
