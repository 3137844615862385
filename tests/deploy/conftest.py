"""What the tests with a real engine share."""

import shutil
import subprocess

import pytest

from tests.deploy.tools import docker


@pytest.fixture(scope="session")
def image() -> str:
    """The image, built by the engine."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers: make check-deploy starts one where it can")
    docker("buildx", "build", "--load", "--tag", "featuremaps:check", "--build-arg", "REVISION=check", ".")
    return "featuremaps:check"
