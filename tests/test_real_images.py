"""Real photographs, odd ones and hostile ones, over HTTP."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.builders import put, small_cnn
from tests.servers import Server, serving

SQUEEZENET = """
[input]
size = [224, 224]
resize = 256
color = "bgr"
scale = 1
mean = [103.939, 116.779, 123.68]
"""
SECONDS, RSS_BYTES = 5.0, 1 << 30


@pytest.fixture(scope="module")
def squeezenet(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("squeezenet")
    (folder / "squeezenet/1").mkdir(parents=True)
    (folder / "squeezenet/1/model.onnx").symlink_to(folder / "file.onnx")
    (folder / "file.onnx").write_bytes(
        (test_data / "models/good/squeezenet1.1_upcast_fp32.onnx").read_bytes()
    )
    (folder / "squeezenet/model.toml").write_text(SQUEEZENET)
    with serving("--models", str(folder)) as server, server.client() as client:
        yield client


def test_the_top_1_of_sixteen_photographs_comes_out_of_the_whole_pipeline(
    squeezenet: httpx.Client, test_data: Path
) -> None:
    expected = json.loads((test_data / "images/top1_squeezenet1.1_upcast_fp32.json").read_text())
    found = {}
    for name in expected:
        body = (test_data / "images/good" / name).read_bytes()
        answer = squeezenet.post(
            "/v1/models/squeezenet/features/json", params={"layers": "outputs"}, content=body
        )
        (scores,) = answer.json()["layers"]
        found[name] = int(np.argmax(scores["data"]))
    assert len(found) == 16
    assert found == {name: row[0] for name, row in expected.items()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tiny")
    put(folder, "tiny", small_cnn(1, 32, 32))
    with serving("--models", str(folder)) as server:
        yield server


@pytest.mark.parametrize("kind", ["good", "odd", "bad"])
def test_every_image_is_answered_or_refused_within_bounds(tiny: Server, test_data: Path, kind: str) -> None:
    allowed = {"good": {200}}.get(kind, {200, 413, 415, 422})
    process = psutil.Process(tiny.pid)
    with tiny.client() as client:
        for path in sorted((test_data / "images" / kind).iterdir()):
            start = time.perf_counter()
            answer = client.post("/v1/models/tiny/features", content=path.read_bytes())
            assert time.perf_counter() - start < SECONDS, path.name
            assert answer.status_code in allowed, (path.name, answer.text)
            if answer.status_code == 200:
                assert "block2.add" in np.load(io.BytesIO(answer.content)).files
            else:
                assert answer.json()["index"] == 0
            assert process.memory_info().rss < RSS_BYTES, path.name
        assert client.get("/livez").status_code == 200


def test_a_photograph_of_a_phone_in_heic_is_told_how_to_convert_it(tiny: Server, test_data: Path) -> None:
    with tiny.client() as client:
        body = (test_data / "images/odd/pug.heic").read_bytes()
        problem = client.post("/v1/models/tiny/features", content=body).json()
    assert problem["code"] == "unsupported-image-format"
    assert "HEIC" in problem["detail"]
    assert "jpg" in problem["detail"].lower() or "jpeg" in problem["detail"].lower()
