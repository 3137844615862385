"""The command, as a person types it."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from service.cli.program import main
from tests.builders import encoded, photograph
from tests.conftest import ROOT


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"photo{i}.jpg" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(photograph(seed=i)))
    return paths


# As the server of these tests runs, whose bits then do not depend on its plans.
UNOPTIMISED = {"FEATUREMAPS_GRAPH_OPTIMIZATION": "off"}


def featuremaps(
    *words: str | Path, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FEATUREMAPS_")}
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, words)],
        capture_output=True,
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), **environ},
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("command", ["", "serve", "models", "layers", "extract", "render"])
def test_help_shows_examples(command: str) -> None:
    done = CliRunner().invoke(main, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert "Example" in done.output


@pytest.mark.parametrize("words", [(), ("http://127.0.0.1:8000", "--layers", "stage:0", "--rate=50")])
def test_bench_says_where_it_went(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, ["bench", *words])
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in ("removed", "perf_analyzer", "wrk", "README", "Measuring"))


def test_models_are_listed_with_their_states(repository: Path) -> None:
    done = featuremaps("models", "--models", repository)
    rows = {line.split()[0]: line for line in done.stdout.decode().splitlines()}
    assert done.returncode == 0
    assert "ready" in rows["small"]
    assert "Git LFS" in rows["broken"]


def test_layers_of_a_file_are_listed(repository: Path) -> None:
    done = featuremaps("layers", repository / "small/1/model.onnx", "--layers", "stages", "--size", "64x64")
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert [line[1] for line in lines] == ["name", "stem/relu", "block2.add"]
    assert lines[1][3] == "1x8x32x32"


def test_extract_writes_what_the_service_answers(
    repository: Path, images: list[Path], tmp_path: Path, client: httpx.Client
) -> None:
    target = tmp_path / "maps.npz"
    done = featuremaps("extract", "small", images[0], "-o", target, "--models", repository, **UNOPTIMISED)
    assert done.returncode == 0, done.stderr
    answer = client.post("/v1/models/small/features", content=images[0].read_bytes())
    assert target.read_bytes() == answer.content


def test_extract_writes_one_file_an_image_into_a_folder(
    repository: Path, images: list[Path], tmp_path: Path
) -> None:
    done = featuremaps(
        "extract",
        "small",
        *images,
        "--layers",
        "stage:-1",
        "--format",
        "npy",
        "-o",
        tmp_path / "out",
        "--models",
        repository,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"photo{i}.npy" for i in range(3)]
    assert np.load(tmp_path / "out/photo0.npy").shape == (1, 16, 8, 8)


def test_the_files_ending_decides_the_format(repository: Path, images: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "maps.safetensors"
    featuremaps("extract", "small", images[0], "-o", target, "--models", repository)
    assert b"stem/relu" in target.read_bytes()[:2000]


def test_extract_writes_to_standard_output(repository: Path, images: list[Path]) -> None:
    words = ("extract", "small", images[0], "--layers", "logits", "--format", "npy", "-o", "-")
    done = featuremaps(*words, "--models", repository)
    assert np.load(io.BytesIO(done.stdout)).shape == (1, 5)


def test_render_draws_what_the_service_draws(
    repository: Path, images: list[Path], tmp_path: Path, client: httpx.Client
) -> None:
    target = tmp_path / "map.webp"
    words = ("render", "small", "stem/relu", images[0], "--style", "overlay", "-o", target)
    done = featuremaps(*words, "--models", repository, **UNOPTIMISED)
    assert done.returncode == 0, done.stderr
    query = {"layer": "stem/relu", "style": "overlay", "format": "webp"}
    assert (
        target.read_bytes()
        == client.post("/v1/models/small/render", params=query, content=images[0].read_bytes()).content
    )


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["layers", "absent"], 1, "no model 'absent'"),
        (["layers", "broken"], 1, "Git LFS"),
        (["layers", "small", "--layers", "stem/rellu"], 1, "did you mean 'stem/relu'"),
        (["layers", "small", "--size", "big"], 2, "HxW"),
        (["layers", "small", "--size", "224x٣"], 2, "HxW"),
        (["models", "--provider", "tpu"], 2, "setting provider"),
        (["models", "--threads", "-1"], 2, "setting threads"),
        (["serve", "--port", "99999"], 2, "setting port"),
        (["serve", "--config", "absent.toml"], 2, "absent.toml"),
        (["extract", "small", "absent.jpg"], 2, "absent.jpg"),
        (["extract", "small", __file__, __file__, "-o", "-"], 2, "`-` takes the maps of one image"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    repository: Path, words: list[str], status: int, text: str
) -> None:
    done = featuremaps(*words, "--models", repository)
    complaint = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b"")
    assert text in complaint
    assert "Traceback" not in complaint
    assert len([line for line in complaint.splitlines() if line.startswith(("featuremaps:", "Error:"))]) == 1


def test_cuda_without_cuda_is_an_error_at_start(repository: Path) -> None:
    done = featuremaps("models", "--provider", "cuda", "--models", repository)
    if done.returncode == 0:
        pytest.skip("this onnxruntime has CUDA")
    assert done.returncode == 2
    assert b"featuremaps[cuda]" in done.stderr


def test_cuda_falls_back_only_when_told_to(repository: Path) -> None:
    done = featuremaps("models", "--provider", "cuda", "--provider-fallback", "--models", repository)
    assert done.returncode == 0


def test_a_misspelt_variable_stops_the_start(repository: Path) -> None:
    done = featuremaps("models", "--models", repository, FEATUREMAPS_PROT="1")
    assert done.returncode == 2
    assert b"FEATUREMAPS_PROT" in done.stderr


def test_a_port_in_use_is_told_in_one_line(repository: Path, server: object) -> None:
    port = server.url.rsplit(":", 1)[1]  # type: ignore[attr-defined]
    done = featuremaps("serve", "--port", port, "--models", repository)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}".encode() in done.stderr


def test_models_in_the_folder_where_one_stands_are_served(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(repository)
    assert b"reshaping" in featuremaps("models", cwd=tmp_path).stdout


def test_without_a_folder_the_bundled_model_is_served(tmp_path: Path) -> None:
    assert re.search(rb"cifar-resnet +1 +ready", featuremaps("models", cwd=tmp_path).stdout)


def test_a_kubernetes_service_link_is_passed_over_with_a_line_in_the_log() -> None:
    done = featuremaps("models", FEATUREMAPS_REDIS_PORT="tcp://10.0.0.1:6379")
    assert done.returncode == 0
    assert b"ignoring FEATUREMAPS_REDIS_PORT" in done.stderr
