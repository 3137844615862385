"""Clients of four generators go the same round trip, and hold the very bytes that the service sent."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.sdk.generators import CLIENTS, check_installed, run
from tests.servers import Server, serving

pytestmark = pytest.mark.sdk
MODEL, LAYER = "cifar-resnet", "stage1.block2.relu"


@pytest.fixture(scope="module")
def bundled() -> Iterator[Server]:
    check_installed()
    with serving("--models", str(ROOT / "models"), "--graph-optimization", "off") as server:
        yield server


@pytest.mark.parametrize("name", CLIENTS)
def test_a_generated_client_goes_the_round_trip(bundled: Server, tmp_path: Path, name: str) -> None:
    photo = tmp_path / "photograph.jpg"
    photo.write_bytes(encoded(photograph(320, 240)))
    document = tmp_path / "openapi.json"
    with bundled.client() as client:
        document.write_bytes(client.get("/openapi.json").content)
        array, picture, layers = expected(client, photo.read_bytes())
    CLIENTS[name].generate(document, tmp_path)
    told = json.loads(run(tmp_path, *CLIENTS[name].command(tmp_path), bundled.url, str(photo), str(tmp_path)))
    assert told["layers"] == layers
    assert told["problem"]["status"] == 404
    assert told["problem"]["code"] == "layer-not-found"
    assert told["problem"]["suggestions"][0] == LAYER
    for kept in ("kept.npy", "sent.npy"):
        assert np.array_equal(np.load(tmp_path / kept).view(np.uint32), array.view(np.uint32))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "map.png")), picture)


def expected(client: httpx.Client, photo: bytes) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What the service sends to a client that nobody generated."""
    query = {"layers": LAYER, "format": "npy"}
    array = client.post(f"/v1/models/{MODEL}/features", params=query, content=photo).content
    drawn = {"layer": LAYER, "colormap": "viridis"}
    picture = client.post(f"/v1/models/{MODEL}/render", params=drawn, content=photo).content
    layers = client.get(f"/v1/models/{MODEL}/layers").json()["layers"]
    return (
        np.load(io.BytesIO(array)),
        np.asarray(Image.open(io.BytesIO(picture))),
        [x["name"] for x in layers],
    )
