"""`featuremaps bench` against the real service, as a person types it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service.cli.bench import read_bench, request_of
from service.cli.photographs import drawn_photograph, numbered
from service.cli.program import main
from service.intake.decode import decode
from service.web.keys import make_key
from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.servers import Server, serving

SHORT = ("--seconds", "0.6", "--layers", "stem/relu")
EACH_ROW = {"layers", "load", "stable", "answers_per_s", "p50_ms", "p90_ms", "p99_ms", "bytes", "refused"}


def bench(*words: str | Path, **environ: str) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, words)], env={"FEATUREMAPS_KEY": None, **environ})


@pytest.fixture(scope="module")
def locked(repository: Path) -> Iterator[tuple[Server, str]]:
    """A service that wants a key, and one."""
    token, line = make_key("laboratory", "infer")
    with serving("--models", str(repository), FEATUREMAPS_KEYS=line) as server:
        yield server, token


def complaint(stdout: str, stderr: str) -> str:
    """The one line that says what is wrong."""
    assert stdout == ""
    assert "Traceback" not in stderr
    (line,) = (x for x in stderr.splitlines() if x.startswith(("featuremaps:", "Error:")))
    return line


def rows(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return found


def test_every_layer_set_is_measured_under_every_load(server: Server) -> None:
    words = ("--model", "small", "--layers", "stem/relu", "--layers", "stage:-1", "--concurrency", "1,3")
    done = bench(server.url, *words, "--seconds", "0.5", "--pid", str(server.pid), "--json", "-")
    found = rows(done)
    assert [(r["layers"], r["concurrency"]) for r in found] == [
        ("stem/relu", 1),
        ("stem/relu", 3),
        ("stage:-1", 1),
        ("stage:-1", 3),
    ]
    for row in found:
        assert row.keys() >= EACH_ROW
        assert row["answers"] > 3
        assert row["answers_per_s"] == pytest.approx(row["answers_kept"] / row["seconds_kept"], rel=0.01)
        assert 0 < row["first_byte_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        parts = [row[f"{part}_ms"] for part in ("queue", "decode", "run", "encode", "network")]
        assert all(0 <= part <= row["p99_ms"] for part in parts)
        assert 10 < row["rss_before_mb"] <= row["rss_peak_mb"] < 4000
        assert 0 < row["cpu_ms"] < 1000
        assert (row["refused"], row["failed"], row["not_begun"]) == ({}, {}, 0)
    assert [r["bytes"] for r in found][::2] == [8 * 16 * 16 * 4 + 128, 16 * 8 * 8 * 4 + 128]
    assert len([x for x in done.stderr.splitlines() if "answers/s" in x]) == 3 * len(found)


def test_an_open_loop_asks_at_its_rate(server: Server) -> None:
    words = ("--model", "small", "--layers", "stem/relu", "--rate", "40", "--seconds", "1.5")
    (row,) = rows(bench(server.url, *words, "--query", "dtype=float16", "--json", "-"))
    assert (row["load"], row["rate"], row["concurrency"]) == ("40/s", 40.0, None)
    # Poisson: 60 are due, give or take four times their root.
    assert 29 <= row["answers"] <= 91
    assert row["bytes"] == 8 * 16 * 16 * 2 + 128
    assert "cpu_ms" not in row


def test_a_table_is_for_people_and_json_for_a_file(server: Server, tmp_path: Path) -> None:
    image = tmp_path / "photo.jpg"
    image.write_bytes(encoded(photograph()))
    words = ("--model", "small", "--concurrency", "2", "--image", image, "--json", tmp_path / "result.json")
    done = bench(server.url + "/", *SHORT, *words)
    head, line = done.stdout.splitlines()
    assert head.split()[:3] == ["layers", "load", "answers/s"]
    assert "CPU" not in head
    assert line.startswith("stem/relu  2 clients")
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["model"], told["image_bytes"]) == ("small", image.stat().st_size)


def test_the_first_ready_model_is_measured_without_one_given(server: Server) -> None:
    done = bench(server.url, "--layers", "index:0", "--concurrency", "1", "--seconds", "0.3", "--json", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"] == "fixed"


@pytest.mark.parametrize("is_option", [True, False])
def test_a_key_is_sent_with_every_request_and_never_told(locked: tuple[Server, str], is_option: bool) -> None:
    server, token = locked
    words = (server.url, "--layers", "index:0", "--concurrency", "1", "--seconds", "0.3", "--json", "-")
    done = bench(*words, "--key", token) if is_option else bench(*words, FEATUREMAPS_KEY=token)
    (row,) = rows(done)
    assert (row["refused"], row["failed"], row["answers"] > 0) == ({}, {}, True)
    assert token not in done.output


@pytest.mark.parametrize(
    ("key", "status", "text"),
    [
        ("", 1, "a key is needed"),
        ("wrong", 1, "key"),
        ("laboratory:infer:00", 2, "--key"),
        ("a\nb", 2, "--key"),
    ],
)
def test_a_key_that_does_not_let_in_is_one_line(
    locked: tuple[Server, str], key: str, status: int, text: str
) -> None:
    done = bench(locked[0].url, *SHORT, "--key", key)
    assert (text in complaint(done.stdout, done.stderr), done.exit_code) == (True, status)
    assert not key or key not in done.output


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("--layers", "stem/rellu"), 1, "did you mean 'stem/relu'"),
        (("--model", "absent"), 1, "no model 'absent'"),
        (("--query", "dtype=float8"), 1, "dtype"),
        (("--query", "dtype"), 2, "--query"),
        (("--concurrency", "0"), 2, "--concurrency"),
        (("--concurrency", "1.5"), 2, "--concurrency"),
        (("--rate", "nan"), 2, "--rate"),
        (("--pid", "999999999"), 2, "999999999"),
        (("--json", "absent/result.json", *SHORT, "--concurrency", "1"), 2, "absent/result.json"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    server: Server, words: tuple[str, ...], status: int, text: str
) -> None:
    done = bench(server.url, *(() if "--model" in words else ("--model", "small")), *words)
    assert (text in complaint(done.stdout, done.stderr), done.exit_code) == (True, status)


@pytest.mark.parametrize(
    ("url", "status", "text"),
    [
        ("http://127.0.0.1:1", 1, "gives no answer"),
        ("127.0.0.1:8000", 2, "http://HOST:PORT"),
        ("http://127.0.0.1:8000/?x=1", 2, "http://HOST:PORT"),
        ("http://[::1", 2, "is no address"),
    ],
)
def test_a_wrong_address_is_one_line(url: str, status: int, text: str) -> None:
    done = bench(url)
    assert (text in complaint(done.stdout, done.stderr), done.exit_code) == (True, status)


def test_what_is_no_such_service_is_told(server: Server) -> None:
    done = bench(f"{server.url}/v1")
    assert (done.exit_code, "there is nothing at" in complaint(done.stdout, done.stderr)) == (1, True)


@pytest.mark.parametrize("package", ["aiohttp", "psutil"])
def test_without_the_extra_it_says_how_to_get_it(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('gone', name={package!r})\n")
    done = subprocess.run(
        [sys.executable, "-m", "service", "bench", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 2
    assert "pip install 'featuremaps[bench]'" in complaint(done.stdout, done.stderr)


def test_the_drawn_photograph_is_the_same_each_time_and_of_the_stated_size() -> None:
    drawn = drawn_photograph()
    assert drawn == drawn_photograph()
    assert 80_000 < len(drawn) < 120_000
    assert drawn.startswith(b"\xff\xd8")


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_numbered_image_is_the_same_picture_in_other_bytes(kind: str) -> None:
    image = encoded(photograph(), kind)
    first, second = numbered(image, 1), numbered(image, 2)
    assert len({image, first, second}) == 3
    same, other = decode(image, max_pixels=10**6), decode(second, max_pixels=10**6)
    assert (same.pixels == other.pixels).all()
    assert same.media_type == other.media_type


@pytest.mark.parametrize("identical", [True, False])
def test_requests_differ_unless_told_not_to(identical: bool) -> None:
    words = {
        "model": None,
        "layer_sets": ("a",),
        "image": None,
        "concurrency": "1",
        "rate": None,
        "kind": "npy",
    }
    times = {"window": 1.0, "tolerance": 5.0, "max_seconds": 9.0, "seconds": None}
    rest = {"accept_encoding": None, "query": (), "pid": None, "identical": identical, "key": None}
    wanted = read_bench("http://127.0.0.1:8000", {**words, **times, **rest})
    first, second = (request_of(wanted, "small", "a", number) for number in (1, 2))
    assert (first == second) == identical


def test_help_shows_examples_and_what_the_figures_mean() -> None:
    done = bench("--help")
    assert done.exit_code == 0
    assert all(word in done.output for word in ("Examples", "nearest rank", "queue", "network", "--rate"))
