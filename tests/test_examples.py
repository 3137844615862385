"""Each example does what it says, against the running service; the TypeScript one runs in tests/sdk."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from tests.browser import browsing
from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.servers import Server, serving

EXAMPLES = ROOT / "deploy" / "examples"
MODEL, LAYER = "/v1/models/cifar-resnet", "stage1.block2.relu"


@pytest.fixture(scope="module")
def bundled() -> Iterator[Server]:
    with serving("--models", str(ROOT / "models"), "--graph-optimization", "off") as server:
        yield server


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.jpg"
    path.write_bytes(encoded(photograph(320, 240)))
    return path


def run(server: Server, photo: Path, *program: str) -> str:
    command = [*program, server.url, str(photo), str(photo.parent)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_array(server: Server, photo: Path) -> None:
    """The array is the one that the service gives to anybody."""
    body = photo.read_bytes()
    with server.client() as client:
        array = client.post(
            f"{MODEL}/features", params={"layers": LAYER, "format": "npy"}, content=body
        ).content
    kept = np.load(photo.with_name("sent.npy"))
    assert np.array_equal(kept.view(np.uint32), np.load(io.BytesIO(array)).view(np.uint32))


def check_files(server: Server, photo: Path) -> None:
    """So is the picture."""
    check_array(server, photo)
    drawn = {"layer": LAYER, "colormap": "viridis"}
    with server.client() as client:
        picture = client.post(f"{MODEL}/render", params=drawn, content=photo.read_bytes()).content
    assert photo.with_name("map.png").read_bytes() == picture


def test_curl_gets_an_array_a_picture_and_a_refusal(bundled: Server, photo: Path) -> None:
    run(bundled, photo, "sh", str(EXAMPLES / "maps.sh"))
    check_files(bundled, photo)
    layers = json.loads(photo.with_name("layers.json").read_text())["layers"]
    assert LAYER in [layer["name"] for layer in layers]
    problem = json.loads(photo.with_name("problem.json").read_text())
    assert (problem["code"], problem["suggestions"][0]) == ("layer-not-found", LAYER)


def test_python_gets_an_array_a_picture_and_a_refusal(bundled: Server, photo: Path) -> None:
    printed = run(bundled, photo, sys.executable, str(EXAMPLES / "maps.py")).splitlines()
    check_files(bundled, photo)
    assert f"{LAYER} [1, 32, 64, 64]" in printed
    assert printed[-1] == f"404 layer-not-found {LAYER}"


def test_a_client_of_triton_gets_an_array_and_a_refusal(bundled: Server, photo: Path) -> None:
    printed = run(bundled, photo, sys.executable, str(EXAMPLES / "triton.py"))
    check_array(bundled, photo)
    assert LAYER in printed


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def elsewhere(folder: Path) -> Iterator[str]:
    """Another origin, which serves a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_page_of_another_origin_shows_the_map(photo: Path, tmp_path: Path) -> None:
    drawing = {"model": "cifar-resnet", "layer": LAYER, "style": "overlay"}
    with (
        elsewhere(tmp_path) as origin,
        serving("--models", str(ROOT / "models"), "--cors-origins", origin) as server,
    ):
        with server.client() as client:
            kept = client.post("/v1/images", content=photo.read_bytes()).json()["id"]
            drawn = client.get(f"/v1/images/{kept}/render", params=drawing).content
        page = (EXAMPLES / "page.html").read_text().replace("{url}", server.url).replace("{id}", kept)
        (tmp_path / "page.html").write_text(page)
        with browsing() as visit:
            visit.page.goto(f"{origin}/page.html")
            shown = "images => images.map(image => [image.naturalWidth, image.naturalHeight])"
            sizes = visit.page.eval_on_selector_all("img", shown)
    assert sizes == [[320, 240], list(Image.open(io.BytesIO(drawn)).size)]


def test_the_list_of_examples_is_whole() -> None:
    told = (EXAMPLES / "README.md").read_text()
    assert [
        p.name for p in sorted(EXAMPLES.iterdir()) if p.name != "README.md" and f"`{p.name}`" not in told
    ] == []
