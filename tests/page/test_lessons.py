"""What the page explains, and the code that it gives away, compared with the service's own numbers."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from playwright.sync_api import Page, expect

from tests.page.conftest import Opening
from tests.page.test_walk import MODEL, array, layers, view_of

pytestmark = pytest.mark.page
ACTIVE = "stem.relu"


def open_lesson(page: Page, name: str) -> str:
    page.click(f'[data-lesson="{name}"]')
    body = page.locator('.lesson-body[aria-busy="false"]')
    expect(body).to_be_visible()
    return body.inner_text()


def pixels(page: Page, canvas: str) -> np.ndarray:
    """(rows, columns, 3) of a canvas of the page."""
    rows, columns, values = page.locator(canvas).first.evaluate(
        "(canvas) => [canvas.height, canvas.width, [...canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data]]"
    )
    return np.array(values, np.float64).reshape(rows, columns, 4)[..., :3]


def test_a_filter_stands_beside_its_map(opening: Opening, http: httpx.Client) -> None:
    page = opening(f"layer={ACTIVE}&channel=4")
    told = open_lesson(page, "filter")
    assert "reads the photograph itself" in told
    answer = http.get(f"/v1/models/{MODEL}/filters", params={"layer": ACTIVE, "format": "npy"})
    weights = np.load(io.BytesIO(answer.content))
    shown = pixels(page, 'canvas[aria-label="Weights of filter 4"]')
    side = shown.shape[0] // weights.shape[2]
    middles = shown[side // 2 :: side, side // 2 :: side]
    wanted = (weights[4].transpose(1, 2, 0) / np.abs(weights).max() + 1) / 2 * 254
    assert np.abs(middles - wanted).max() <= 1.01


def test_what_the_activation_cuts_away_is_what_was_negative(opening: Opening, http: httpx.Client) -> None:
    page = opening(f"layer={ACTIVE}&channel=4")
    told = open_lesson(page, "activation")
    before = next(row["reads"][0] for row in layers(http) if row["name"] == ACTIVE)  # type: ignore[index]
    values = array(http, {**view_of(page), "layer": before}, channels=4)
    shown = re.search(r"(\d+) % of the cells changed", told)
    assert shown
    assert int(shown[1]) == pytest.approx(float((values < 0).mean()) * 100, abs=1)


def test_pooling_keeps_a_quarter_of_the_numbers(page: Page, http: httpx.Client) -> None:
    told = open_lesson(page, "pooling")
    assert "25 % of the numbers are left" in told
    view = view_of(page)
    values = array(http, view, channels=view["channel"])[0, 0].astype(np.float64)
    rows, columns = values.shape
    four = values.reshape(rows // 2, 2, columns // 2, 2)
    for how, words in ((four.max, "Largest of four"), (four.mean, "Mean of four")):
        page.click(f"text={words}")
        lost = np.abs(values - how(axis=(1, 3)).repeat(2, 0).repeat(2, 1)).mean()
        expect(page.locator(".lesson-body")).to_contain_text(f"by {float(f'{lost:.4g}'):g} on average")


def test_every_stage_shows_its_strongest_channels(page: Page, http: httpx.Client) -> None:
    open_lesson(page, "growth")
    stages = [str(row["name"]) for row in layers(http) if row["stage"] is not None]
    assert page.locator(".stages .link").all_inner_texts() == stages
    for place, name in enumerate(stages):
        means = array(http, {**view_of(page), "layer": name})[0].mean(axis=(1, 2))
        figures = page.locator(".stages > li").nth(place).locator("figcaption")
        assert figures.first.inner_text() == f"Channel {means.argmax()}"


def test_maps_move_with_the_photograph_and_the_pooled_vector_hardly_does(page: Page) -> None:
    open_lesson(page, "shift")
    words = page.locator(".lesson-body p[role=status]")
    expect(words).to_contain_text("cell by cell 1.00, the pooled vector 1.00")
    page.locator("canvas.window").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(words).not_to_contain_text("cell by cell 1.00")
    page.wait_for_timeout(300)
    found = re.search(r"cell by cell (-?\d\.\d+), the pooled vector (\d\.\d+)", words.inner_text())
    assert found
    assert float(found[1]) < float(found[2])


def test_what_each_stage_costs_adds_up(page: Page, http: httpx.Client) -> None:
    told = open_lesson(page, "cost")
    total = http.get(f"/v1/models/{MODEL}/layers").json()["total_macs"]
    shown = re.findall(r"([\d.]+) (k|M|G) MACs", told)
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    assert sum(float(number) * units[unit] for number, unit in shown) == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize(
    ("language", "what"),
    [("curl", "array"), ("python", "channel"), ("typescript", "array"), ("curl", "picture")]
    + [
        pytest.param(language, what, marks=pytest.mark.slow)
        for language, what in (
            ("curl", "channel"),
            ("python", "array"),
            ("python", "picture"),
            ("typescript", "channel"),
            ("typescript", "picture"),
        )
    ],
)
def test_the_code_that_is_given_away_gives_what_is_shown(
    page: Page, http: httpx.Client, tmp_path: Path, language: str, what: str
) -> None:
    program = {"curl": shutil.which("bash"), "python": sys.executable, "typescript": shutil.which("node")}
    if program[language] is None:
        pytest.skip(f"no program runs {language} here")
    page.click("#takeaway summary")
    page.select_option("#choice-what", what)
    page.select_option("#choice-language", language)
    name = {"curl": "code.sh", "python": "code.py", "typescript": "code.mjs"}[language]
    (tmp_path / name).write_text(page.locator("#code").inner_text())
    command = [str(program[language]), name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    view = view_of(page)
    wanted = array(http, view, **({"channels": view["channel"]} if what == "channel" else {}))
    if what == "picture":
        given = {"model": MODEL, "layer": view["layer"]}
        drawn = http.get(f"/v1/images/{view['image']}/render", params=given).content
        (file,) = tmp_path.glob("*.png")
        assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(x))) for x in (file.read_bytes(), drawn)))
    elif language == "curl":
        (file,) = tmp_path.glob("*.npy")
        np.testing.assert_allclose(np.load(file), wanted, rtol=1e-5, atol=1e-5)
    elif language == "python":
        assert done.stdout.strip() == f"{wanted.shape} {wanted.dtype}"
    else:
        assert done.stdout.strip() == f"[{', '.join(map(str, wanted.shape))}] {wanted.size}"


def test_files_are_downloaded(page: Page, http: httpx.Client) -> None:
    page.click("#takeaway summary")
    view = view_of(page)
    found = {}
    for ending in ("npy", "npz", "safetensors", "png"):
        with page.expect_download() as coming:
            page.click(f"#downloads >> text=/^\\.{ending}$/")
        assert coming.value.suggested_filename == f"{view['layer']}.{ending}"
        found[ending] = Path(coming.value.path()).read_bytes()
    wanted = array(http, view)
    arrays = [np.load(io.BytesIO(found["npy"])), np.load(io.BytesIO(found["npz"]))[view["layer"]]]
    arrays.append(safetensors.numpy.load(found["safetensors"])[view["layer"]])
    for values in arrays:
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)
    assert Image.open(io.BytesIO(found["png"])).format == "PNG"
