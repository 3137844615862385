"""The sample's exports over HTTP: declared outputs and a layer half-way, for a ready tensor."""

import io
import shutil
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.builders import npy
from tests.servers import serving
from tests.zoo.subjects import SAMPLE, Subject

pytestmark = pytest.mark.zoo

EXPORTS = [Subject(*export) for export in SAMPLE]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("served")
    for export in EXPORTS:
        shutil.copytree(export.path.parent, folder / export.name / "1")
    with serving("--models", str(folder), "--graph-optimization", "off") as server, server.client() as client:
        yield client


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_maps_equal_those_of_the_whole_graph(client: httpx.Client, export: Subject) -> None:
    url = f"/v1/models/{export.name}"
    rows = _given(client.get(f"{url}/layers", params={"layers": "all"})).json()["layers"]
    asked = ["outputs", f"index:{len(rows) // 2}"]
    answer = client.post(
        f"{url}/features",
        params={"layers": asked, "format": "npz"},
        content=npy(export.image()),
        headers={"Content-Type": "application/x-npy"},
    )
    maps = dict(np.load(io.BytesIO(_given(answer).content), allow_pickle=False))
    del maps["__metadata__"]
    assert len(maps) >= 2
    for name, value in maps.items():
        np.testing.assert_array_equal(value, export.tensors[name])


def _given(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        pytest.fail(f"{answer.status_code}: {answer.text[:300]}", pytrace=False)
    return answer
