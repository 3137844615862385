"""What a person does with the page, step by step, and what the service says about the same things."""

import base64
import io
import re
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from service.declarations import schema_of
from service.parameters import Drawing
from tests.builders import encoded, merging_cnn, photograph, put, small_cnn
from tests.conftest import ROOT
from tests.page.conftest import REFUSED, Opening, picture
from tests.page.service import running

pytestmark = pytest.mark.page
MODEL = "cifar-resnet"
WORDS = {
    "heatmap": "Heat map",
    "overlay": "Heat map on the photograph",
    "pca": "Principal components",
    "eigencam": "First component on the photograph",
}
PHOTO = encoded(photograph(320, 200, seed=4), "PNG")


def view_of(page: Page) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(page.url.partition("#")[2]).items()}


def array(http: httpx.Client, view: dict[str, str], **asked: object) -> np.ndarray:
    given = {"model": MODEL, "layers": view["layer"], "format": "npy", **asked}
    answer = http.get(f"/v1/images/{view['image']}/features", params=given)
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


def statistics(http: httpx.Client, view: dict[str, str]) -> dict[str, object]:
    given = {"model": MODEL, "layers": view["layer"]}
    return http.get(f"/v1/images/{view['image']}/statistics", params=given).json()["layers"][0]


def channels_of(page: Page, tiles: str) -> list[int]:
    return page.locator(tiles).evaluate_all("all => all.map((tile) => Number(tile.dataset.channel))")


def layers(http: httpx.Client) -> list[dict[str, object]]:
    return http.get(f"/v1/models/{MODEL}/layers").json()["layers"]


def settle(page: Page, before: str) -> None:
    """Until another photograph than before is looked at."""
    expect(page).not_to_have_url(re.compile(f"#image={before}"))
    expect(page.locator(f'.photograph[data-address$="{view_of(page)["image"]}"]')).to_be_visible()


def test_a_newcomer_sees_the_channels_of_a_first_layer_without_doing_anything(
    page: Page, http: httpx.Client
) -> None:
    layer = next(row for row in layers(http) if row["stage"] == 0)
    expect(page.locator("#layer-title")).to_have_text(str(layer["name"]))
    expect(page.locator(".tile")).to_have_count(int(str(layer["channels"])))
    expect(page.locator("#says")).to_contain_text("The network says:")


def test_the_channel_that_is_shown_at_first_is_the_one_that_reacts_most(
    page: Page, http: httpx.Client
) -> None:
    view = view_of(page)
    assert int(view["channel"]) == int(array(http, view)[0].mean(axis=(1, 2)).argmax())


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_photograph_comes_in(page: Page, http: httpx.Client, tmp_path: Path, way: str) -> None:
    before = view_of(page)["image"]
    if way == "choose":
        page.set_input_files("#file", picture(tmp_path, PHOTO))
    else:
        page.evaluate(
            """([way, body]) => {
              const bytes = Uint8Array.from(atob(body), (each) => each.charCodeAt(0));
              const carried = new DataTransfer();
              carried.items.add(new File([bytes], "photo.png", { type: "image/png" }));
              const given = { bubbles: true, cancelable: true };
              document.body.dispatchEvent(way === "drop"
                ? new DragEvent("drop", { ...given, dataTransfer: carried })
                : new ClipboardEvent("paste", { ...given, clipboardData: carried }));
            }""",
            [way, base64.b64encode(PHOTO).decode()],
        )
    settle(page, before)
    assert http.get(f"/v1/images/{view_of(page)['image']}").content == PHOTO


def test_a_photograph_is_taken_by_the_webcam(page: Page, http: httpx.Client) -> None:
    before = view_of(page)["image"]
    page.click("#webcam")
    expect(page.locator("#shoot")).to_be_enabled()
    page.click("#shoot")
    settle(page, before)
    taken = http.get(f"/v1/images/{view_of(page)['image']}")
    assert Image.open(io.BytesIO(taken.content)).format == "JPEG"


def test_the_sample_comes_back(page: Page, tmp_path: Path) -> None:
    sample = view_of(page)["image"]
    page.set_input_files("#file", picture(tmp_path, PHOTO))
    settle(page, sample)
    page.click("#sample")
    expect(page).to_have_url(re.compile(sample))


def test_every_layer_is_in_the_column_once_it_is_unfolded(page: Page, http: httpx.Client) -> None:
    page.click("#fold-all")
    expect(page.locator("#fold-all")).to_have_text("Fold all")
    shown = page.locator(".row:not(.whole)").evaluate_all("rows => rows.map((row) => row.dataset.layer)")
    assert sorted(shown) == sorted(str(row["name"]) for row in layers(http))


def test_a_row_tells_what_list_layers_tells(page: Page, http: httpx.Client) -> None:
    row = next(row for row in layers(http) if row["op"] == "Conv" and row["reduction"] == [2, 2])
    page.fill("#search", str(row["name"]))
    told = page.locator(f'.row[data-layer="{row["name"]}"]')
    shape, field = row["shape"], row["receptive_field"]
    expect(told).to_contain_text(" \N{MULTIPLICATION SIGN} ".join(str(side) for side in shape[1:]))  # type: ignore[index]
    expect(told).to_contain_text(f"sees {field['size'][0]} px")  # type: ignore[index]
    expect(told).to_contain_text("÷ 2")
    expect(told).to_contain_text(f"{int(str(row['macs'])) / 1e6:.1f} M MACs")


def test_a_row_tells_how_much_of_its_layer_is_zero(page: Page, http: httpx.Client) -> None:
    row = page.locator('.row[aria-current="true"]').first
    share = statistics(http, view_of(page))["sparsity"]
    expect(row).to_contain_text(f"{round(float(str(share)) * 100)} % zeros")


def test_layers_are_found_by_name_and_by_operator(page: Page, http: httpx.Client) -> None:
    page.fill("#search", "relu")
    page.select_option("#operators", "Relu")
    names = [str(row["name"]) for row in layers(http) if row["op"] == "Relu" and "relu" in str(row["name"])]
    assert page.locator(".row").evaluate_all("rows => rows.map((row) => row.dataset.layer)") == names
    page.fill("#search", "no such layer")
    expect(page.locator("#found")).to_have_text("No layer is called so.")


def test_channels_are_sorted_by_mean_and_dead_ones_are_dimmed(opening: Opening, http: httpx.Client) -> None:
    deep = [row for row in layers(http) if row["stage"] is not None][-1]
    page = opening(f"layer={deep['name']}&sort=mean")
    view = view_of(page)
    expect(page.locator(".tile")).to_have_count(int(str(deep["channels"])))
    means = array(http, view)[0].astype(np.float64).mean(axis=(1, 2))
    shown = channels_of(page, ".tile")
    assert np.all(np.diff(means[shown]) <= 1e-6)
    dead = page.locator(".tile.dead").evaluate_all(
        "tiles => tiles.map((tile) => Number(tile.dataset.channel))"
    )
    assert sorted(dead) == statistics(http, view)["dead_channels"]


def test_a_tile_shows_its_own_channel_as_the_service_draws_it(page: Page, http: httpx.Client) -> None:
    view = view_of(page)
    channel = 5
    tile = page.locator(f'.tile[data-channel="{channel}"]')
    tile.scroll_into_view_if_needed()
    shown = np.asarray(Image.open(io.BytesIO(tile.screenshot())).convert("L"), np.float64)
    given = {"model": MODEL, "layer": view["layer"], "style": "channel", "channel": channel, "scale": 1}
    drawn = Image.open(io.BytesIO(http.get(f"/v1/images/{view['image']}/render", params=given).content))
    wanted = np.asarray(drawn.convert("L").resize(shown.shape[::-1], Image.Resampling.NEAREST), np.float64)
    # Its number stands in the lower left.
    assert np.corrcoef(shown[: len(shown) // 2].ravel(), wanted[: len(shown) // 2].ravel())[0, 1] > 0.95


def test_a_chosen_channel_is_shown_large_with_its_numbers(page: Page, http: httpx.Client) -> None:
    page.click('.tile[data-channel="3"]')
    expect(page.locator("#channel-title")).to_have_text("Channel 3")
    values = array(http, view_of(page), channels=3)
    expect(page.locator("#channel-facts")).to_contain_text(f"mean {float(values.mean()):.4g}")
    expect(page.locator(".histogram svg")).to_have_attribute(
        "aria-label", re.compile(f"of {values.size} values")
    )


def test_a_channel_is_shown_over_the_photograph(page: Page) -> None:
    page.check("#over")
    box = page.locator("#channel-map img.photographed").bounding_box()
    photo = page.locator(".photograph").bounding_box()
    assert box
    assert photo
    assert box["width"] / box["height"] == pytest.approx(photo["width"] / photo["height"], rel=0.02)


def test_pointing_at_a_cell_tells_its_value_and_marks_its_field(page: Page, http: httpx.Client) -> None:
    view = view_of(page)
    values = array(http, view, channels=view["channel"])[0, 0]
    y, x = 20, 30
    box = page.locator("#channel-map img").bounding_box()
    assert box
    rows, columns = values.shape
    page.mouse.move(
        box["x"] + (x + 0.5) / columns * box["width"], box["y"] + (y + 0.5) / rows * box["height"]
    )
    expect(page.locator("#channel-told")).to_have_text(f"cell ({y}, {x}): {float(f'{values[y, x]:.4g}'):g}")
    # The sample has 512 x 384 pixels, of which the middle square is seen, shrunk to the input's side.
    layer = next(row for row in layers(http) if row["name"] == view["layer"])
    side = http.get(f"/v1/models/{MODEL}").json()["preprocessing"]["size"][0]
    field = layer["receptive_field"]
    step, start, size = layer["reduction"][0], field["start"][0], field["size"][0]  # type: ignore[index]
    top = (start + y * step) * 384 / side
    left = (start + x * step) * 384 / side + (512 - 384) / 2
    marked = page.locator(".marks rect.field").last
    assert float(str(marked.get_attribute("y"))) == pytest.approx(max(top, 0), abs=6)
    assert float(str(marked.get_attribute("x"))) == pytest.approx(left, abs=6)
    assert float(str(marked.get_attribute("width"))) == pytest.approx(size * 384 / side, abs=12)


def test_pointing_at_a_tile_tells_the_value_of_that_channel(page: Page, http: httpx.Client) -> None:
    values = array(http, view_of(page), channels=7)[0, 0]
    box = page.locator('.tile[data-channel="7"]').bounding_box()
    assert box
    zoom = box["width"] / values.shape[1]
    page.mouse.move(box["x"] + 10.5 * zoom, box["y"] + 12.5 * zoom)
    wanted = f"channel 7, cell (12, 10): {float(f'{values[12, 10]:.4g}'):g}"
    expect(page.locator("#channel-told")).to_have_text(wanted)


def test_pointing_at_the_photograph_tells_which_cells_look_there(page: Page, http: httpx.Client) -> None:
    box = page.locator(".photograph").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    layer = next(row for row in layers(http) if row["name"] == view_of(page)["layer"])
    cells = (layer["receptive_field"]["size"][0] / layer["reduction"][0]) ** 2  # type: ignore[index]
    expect(page.locator("#channel-told")).to_contain_text(f"{int(cells)} cells look here")
    expect(page.locator(".pointer")).to_be_visible()
    page.mouse.move(box["x"] + 3, box["y"] + box["height"] / 2)
    expect(page.locator("#channel-told")).to_have_text("The network sees nothing of this place.")


def test_each_style_shows_the_services_own_picture(page: Page, http: httpx.Client) -> None:
    view = view_of(page)
    for style in ("heatmap", "overlay", "pca", "eigencam"):
        page.check(f"#style-{style}", force=True)
        image = page.locator(f'#picture img[alt^="{WORDS[style]} of"]')
        expect(image).to_be_visible()
        given = {"model": MODEL, "layer": view["layer"], "style": style}
        drawn = http.get(f"/v1/images/{view['image']}/render", params=given).content
        wanted = Image.open(io.BytesIO(drawn)).convert("RGB").resize((32, 32))
        image.scroll_into_view_if_needed()
        shown = Image.open(io.BytesIO(image.screenshot())).convert("RGB").resize((32, 32))
        pairs = np.asarray(shown, np.float64).ravel(), np.asarray(wanted, np.float64).ravel()
        assert np.corrcoef(*pairs)[0, 1] > 0.9


def test_class_maps_begin_with_the_likeliest_class_where_they_can_be_drawn(
    opening: Opening, http: httpx.Client, expected: list[str]
) -> None:
    expected.append(f"{REFUSED}422")
    page = opening("style=cam")
    # The first stage is not what the classifier reads; the refusal says which layer is.
    page.locator(".refusal button").first.click()
    expect(page.locator("#picture img")).to_be_visible()
    view = view_of(page)
    output = http.get(f"/v1/models/{MODEL}").json()["outputs"][0]
    logits = array(http, {**view, "layer": output})[0]
    assert int(view.get("target", -1)) == int(logits.argmax())


def test_colours_and_scales_change_the_picture_and_its_legend(page: Page) -> None:
    page.select_option("#choice-colormap", "viridis")
    expect(page.locator("#layer-scale")).to_contain_text("viridis")
    page.select_option("#choice-normalize", "fixed")
    page.fill("#choice-vmin", "0")
    page.fill("#choice-vmax", "2")
    page.locator("#choice-vmax").blur()
    expect(page.locator("#layer-scale .legend")).to_contain_text("2")
    assert (
        view_of(page).items()
        >= {"colormap": "viridis", "normalize": "fixed", "vmin": "0", "vmax": "2"}.items()
    )


def test_a_range_has_the_declared_bounds_and_goes_into_the_address(page: Page) -> None:
    declared = schema_of(Drawing)
    page.check("#style-overlay", force=True)
    for name, chosen in (("image_weight", "0.25"), ("clip", "12")):
        control = page.locator(f"#choice-{name}")
        assert control.get_attribute("min") == str(declared[name]["minimum"])
        assert control.get_attribute("max") == str(declared[name]["maximum"])
        control.fill(chosen)
    assert view_of(page).items() >= {"image_weight": "0.25", "clip": "12"}.items()
    expect(page.locator("#picture img")).to_be_visible()


def test_the_address_shows_a_colleague_the_same(page: Page, opening: Opening) -> None:
    page.check("#style-heatmap", force=True)
    page.select_option("#choice-combine", "max")
    expect(page.locator("#picture img")).to_be_visible()
    other = opening(page.url.partition("#")[2])
    expect(other.locator("#picture img")).to_be_visible()
    assert other.locator("#picture img").screenshot() == page.locator("#picture img").screenshot()


def test_going_back_goes_to_the_layer_before(page: Page) -> None:
    first = page.locator("#layer-title").inner_text()
    page.keyboard.press("]")
    expect(page.locator("#layer-title")).not_to_have_text(first)
    page.go_back()
    expect(page.locator("#layer-title")).to_have_text(first)


def test_a_layer_without_channels_says_why_it_is_not_drawn_and_steps_to_none(
    opening: Opening, tmp_path: Path, expected: list[str]
) -> None:
    expected.append(f"{REFUSED}422")
    put(tmp_path / "models", "merging", merging_cnn())
    with running(tmp_path, tmp_path / "models") as service:
        page = opening("layer=merged", url=service.url, wait=False)
        expect(page.locator("#picture .refusal")).to_contain_text("only maps laid out as NCHW, NHWC or NC")
        for key in (".", ","):
            page.keyboard.press(key)
        assert "channel=" not in page.evaluate("location.hash")
        page.context.close()


def test_two_layers_stand_side_by_side(page: Page) -> None:
    first = page.locator("#layer-title").inner_text()
    page.click("#pin")
    page.keyboard.press("]")
    expect(page.locator(".side img")).to_have_count(2)
    captions = page.locator(".side figcaption").all_inner_texts()
    assert captions[0] == f"Kept: {MODEL} · {first}"
    assert captions[1] == f"Now: {MODEL} · {page.locator('#layer-title').inner_text()}"


def test_two_photographs_stand_side_by_side(page: Page, tmp_path: Path) -> None:
    before = view_of(page)["image"]
    page.click("#pin")
    page.set_input_files("#file", picture(tmp_path, PHOTO))
    settle(page, before)
    expect(page.locator(".side img")).to_have_count(2)
    pictures = page.locator(".side img")
    assert pictures.nth(0).get_attribute("src") != pictures.nth(1).get_attribute("src")
    page.click("#pin")
    expect(page.locator("#compare")).to_be_hidden()


def test_two_models_stand_side_by_side(opening: Opening, tmp_path: Path) -> None:
    put(tmp_path / "models", "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    with running(tmp_path, ROOT / "models", tmp_path / "models") as both:
        page = opening(url=both.url)
        first = page.locator("#layer-title").inner_text()
        page.click("#pin")
        page.select_option("#model", "small")
        expect(page.locator(".side figcaption").last).to_contain_text("Now: small")
        expect(page.locator(".side img")).to_have_count(2)
        assert page.locator(".side figcaption").first.inner_text() == f"Kept: {MODEL} · {first}"
        with both.client() as http:
            shapes = [
                http.get(f"/v1/models/{side['model']}/layers", params={"layers": side["layer"]}).json()[
                    "layers"
                ]
                for side in ({"model": MODEL, "layer": first}, view_of(page))
            ]
        for place, (layer,) in enumerate(shapes):
            told = " \N{MULTIPLICATION SIGN} ".join(str(side) for side in layer["shape"][1:])
            expect(page.locator(".side").nth(place)).to_contain_text(told)
        page.context.close()
