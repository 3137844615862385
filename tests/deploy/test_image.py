"""The image, built and run by a real engine."""

import io
import json
import re
import subprocess
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.deploy.tools import docker
from tests.intake.redis_server import free_port, until
from tests.servers import serving

pytestmark = pytest.mark.engine
LARGEST_BYTES = 450_000_000
CONFINED = [
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=1g",
]


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[tuple[str, str]]:
    """A confined one, and its URL."""
    port = free_port()
    published = ["--publish", f"127.0.0.1:{port}:8000", "--env", "FEATUREMAPS_ALLOW_ANONYMOUS=true"]
    name = docker("run", "--detach", "--init", *CONFINED, *published, image)
    try:
        until(lambda: health(name) == "healthy", within_s=120)
        yield name, f"http://127.0.0.1:{port}"
    finally:
        docker("rm", "--force", name)


def health(name: str) -> str:
    return docker("inspect", "--format", "{{.State.Health.Status}}", name)


def inside(name: str, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["docker", "exec", name, *command], capture_output=True, text=True, check=False)


def test_it_is_small(image: str) -> None:
    assert int(docker("image", "inspect", "--format", "{{.Size}}", image)) < LARGEST_BYTES


def test_it_says_what_it_is(image: str) -> None:
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.title"] == "featuremaps"
    assert labels["org.opencontainers.image.revision"] == "check"


def test_confined_it_answers_what_the_service_answers_here(container: tuple[str, str]) -> None:
    ask = {"layers": "stages"}
    picture = encoded(photograph(), "JPEG")
    with serving(cwd=ROOT) as server, server.client() as here:
        expected = maps(here.post("/v1/models/cifar-resnet/features", params=ask, content=picture))
    with httpx.Client(base_url=container[1], timeout=60, trust_env=False) as there:
        actual = maps(there.post("/v1/models/cifar-resnet/features", params=ask, content=picture))
    assert actual.keys() == expected.keys()
    for layer, values in expected.items():
        # Another machine's Python packages are the same; how its allocator aligns decides last bits.
        np.testing.assert_allclose(actual[layer], values, rtol=0, atol=1e-5 * np.abs(values).max())


def maps(answer: httpx.Response) -> dict[str, np.ndarray]:
    answer.raise_for_status()
    with np.load(io.BytesIO(answer.content)) as arrays:
        return {name: arrays[name] for name in arrays.files if name != "__metadata__"}


def test_it_keeps_images_where_only_tmp_can_be_written(container: tuple[str, str]) -> None:
    assert (
        httpx.post(f"{container[1]}/v1/images", content=encoded(photograph()), trust_env=False).status_code
        == 201
    )
    assert inside(container[0], "touch", "/opt/featuremaps/x").returncode != 0


def test_it_is_nobody_and_has_nothing_to_build_with(container: tuple[str, str]) -> None:
    assert inside(container[0], "id", "-u").stdout.strip() == "10001"
    assert inside(container[0], "grep", "CapEff", "/proc/1/status").stdout.split()[1].strip("0") == ""
    for program in ("gcc", "cc", "make", "/opt/featuremaps/bin/pip"):
        assert inside(container[0], "sh", "-c", f"command -v {program}").returncode != 0


def test_its_models_are_what_is_mounted_at_models(image: str) -> None:
    mount = ["--volume", f"{ROOT / 'models'}:/models:ro"]
    assert "/models/cifar-resnet" not in docker("run", "--rm", *CONFINED, image, "models")
    listed = docker("run", "--rm", *CONFINED, *mount, image, "models")
    assert "cifar-resnet" in listed


def test_without_a_word_about_callers_it_does_not_start(image: str) -> None:
    done = subprocess.run(
        ["docker", "run", "--rm", *CONFINED, image], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "allow_anonymous" in done.stdout + done.stderr


def test_it_ends_well(container: tuple[str, str]) -> None:
    docker("stop", "--time", "30", container[0])
    assert (
        docker("inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", container[0]) == "0 false"
    )


@pytest.fixture(scope="module")
def cuda_image(image: str) -> str:
    name = f"{image}-cuda"
    docker("buildx", "build", "--load", "--tag", name, "--build-arg", "RUNTIME=cuda", ".")
    return name


def test_with_cuda_it_lacks_nothing_but_the_driver_and_says_so(cuda_image: str) -> None:
    given = ["--env=FEATUREMAPS_ALLOW_ANONYMOUS=true", "--env=FEATUREMAPS_PROVIDER=cuda"]
    command = ["docker", "run", "--rm", *CONFINED, *given, cuda_image]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert re.findall(r"lib\w+\.so[.\d]*(?=: cannot open)", done.stderr) == ["libcuda.so.1"]
    assert "a driver for CUDA" in done.stderr


def test_with_cuda_it_answers_without_a_gpu_where_it_may(cuda_image: str) -> None:
    port = free_port()
    given = ["--env=FEATUREMAPS_ALLOW_ANONYMOUS=true", "--env=FEATUREMAPS_PROVIDER_FALLBACK=true"]
    published = ["--publish", f"127.0.0.1:{port}:8000", "--env=FEATUREMAPS_PROVIDER=cuda"]
    name = docker("run", "--detach", *CONFINED, *given, *published, cuda_image)
    try:
        until(lambda: health(name) == "healthy", within_s=120)
        url = f"http://127.0.0.1:{port}/v1/models/cifar-resnet"
        assert httpx.get(url, trust_env=False).json()["provider"] == "cpu"
    finally:
        docker("rm", "--force", name)
