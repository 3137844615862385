"""Fixtures that several rooms' tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from service.engine.runner import Runtime
from tests.builders import encoded, photograph, put, reshaping_cnn, small_cnn
from tests.servers import Server, serving

# Sessions of one process share a thread pool or none does: it has to be there before any of them.
Runtime()

# How long an example takes says more of who else computes than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = ["tests.skips"]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real models and photographs, which are no part of the project."""
    folder = Path(os.environ.get("TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def light_models() -> dict[str, Path]:
    """The full-size graphs with constant weights that the onnx package ships."""
    import onnx

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return {path.stem.removeprefix("light_"): path for path in sorted(folder.glob("*.onnx"))}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models, one of them broken, one with two versions of which the higher is broken."""
    folder = tmp_path_factory.mktemp("models")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    put(folder, "fixed", small_cnn(1, 32, 32))
    put(folder, "reshaping", reshaping_cnn())
    put(folder, "versions", small_cnn(1, 32, 32), "1")
    put(folder, "versions", small_cnn(1, 32, 32), "2").write_bytes(b"not ONNX")
    put(folder, "broken", small_cnn()).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """The service with the small models; unoptimised, so that equal requests have equal bits."""
    with serving("--models", str(repository), "--graph-optimization", "off") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    return encoded(photograph(), "JPEG", quality=90)
