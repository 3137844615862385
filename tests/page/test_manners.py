"""Keyboard, screen readers, policies, refusals in words, and that it stays small."""

import gzip
import hashlib
import json
import re
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect

from service.web.static_files import FOLDER, PAGE_POLICY
from tests.builders import encoded, photograph, put, small_cnn
from tests.conftest import ROOT
from tests.page.conftest import NARROW, REFUSED, Opening, picture
from tests.page.service import running
from tests.page.test_walk import array, view_of

pytestmark = pytest.mark.page
LARGEST_BYTES = 150_000
TOKEN = "featuremaps_a-key-for-this-test"


def faults(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {json.dumps([node['html'][:160] for node in fault['nodes'][:3]])}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(
    ("scheme", "view"),
    [("light", "lesson=growth"), ("dark", "style=overlay&lesson=activation"), ("dark", "")],
)
def test_axe_finds_nothing_serious(opening: Opening, scheme: str, view: str) -> None:
    page = opening(view, color_scheme=scheme)
    if view:
        expect(page.locator('.lesson-body[aria-busy="false"]')).to_be_visible()
    page.click("#takeaway summary")
    assert faults(page) == []


def test_axe_finds_nothing_serious_in_dialogs_and_comparisons(page: Page) -> None:
    page.click("#pin")
    page.keyboard.press("]")
    expect(page.locator(".side img")).to_have_count(2)
    assert faults(page) == []
    page.click("#show-help")
    assert faults(page) == []


def test_nothing_is_cut_off_on_a_narrow_screen(opening: Opening) -> None:
    page = opening(viewport=NARROW)
    for pane in ("network", "photo", "layer"):
        page.click(f'[data-pane="{pane}"]')
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        wide = page.evaluate(
            """() => [...document.querySelectorAll("main > *")]
                 .filter((part) => part.scrollWidth > part.clientWidth + 1).map((part) => part.className)"""
        )
        assert wide == []
        assert faults(page) == []
    page.click(".tile >> nth=2")
    expect(page.locator("#channel-map img")).to_be_visible()


def test_a_large_map_is_reached_by_the_keyboard_alone(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("stage1")
    page.keyboard.press("Tab")  # The operators.
    page.keyboard.press("Tab")  # The first layer found.
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    second = page.locator(".row").nth(1).get_attribute("data-layer")
    expect(page.locator("#layer-title")).to_have_text(str(second))
    expect(page.locator("#channel-facts .histogram")).to_be_visible()
    page.locator('.tile[tabindex="0"]').focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#channel-title")).to_have_text("Channel 1")
    page.locator("#channel-map").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#channel-told")).to_contain_text(re.compile(r"cell \(\d+, \d+\): "))


def test_a_key_pressed_before_the_values_came_is_not_lost(page: Page, http: httpx.Client) -> None:
    page.locator('.tile[tabindex="0"]').focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    held: list[Route] = []
    page.route("**/features**", lambda route: held.append(route))
    page.keyboard.press("Enter")
    expect(page.locator("#channel-title")).to_have_text("Channel 1")
    page.locator("#channel-map").focus()
    page.keyboard.press("ArrowDown")
    told = page.locator("#channel-told")
    expect(told).to_have_text(re.compile(r"^cell \(\d+, \d+\)$"))
    assert held
    for route in held:
        route.continue_()
    page.unroute_all()
    values = array(http, view_of(page), channels=1)[0, 0]
    y, x = values.shape[0] // 2 + 1, values.shape[1] // 2
    expect(told).to_have_text(f"cell ({y}, {x}): {float(f'{values[y, x]:.4g}'):g}")
    # The same cell of the next channel; of another layer none.
    page.locator('.tile[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    values = array(http, view_of(page), channels=2)[0, 0]
    expect(told).to_have_text(f"cell ({y}, {x}): {float(f'{values[y, x]:.4g}'):g}")
    page.keyboard.press("]")
    expect(told).to_have_text("Point at the map, or focus it and use the arrow keys.")


def test_blocks_fold_by_the_keyboard(page: Page) -> None:
    row = page.locator(".row.whole").first
    row.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".toggle").first).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".toggle").first).to_have_attribute("aria-expanded", "false")


def test_what_has_the_focus_is_seen(page: Page) -> None:
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            """() => {
              const { activeElement } = document;
              const shown = activeElement.type === "radio" ? activeElement.nextElementSibling : activeElement;
              return getComputedStyle(shown).outlineStyle;
            }"""
        )
        assert outline != "none"


def test_the_policy_stops_a_script_that_was_slipped_in(page: Page, expected: list[str]) -> None:
    expected += ["Executing inline script", "Refused to", "Loading the script", "Executing inline event"]
    ran = page.evaluate(
        """async () => {
          const script = document.createElement("script");
          script.textContent = "window.slippedIn = true";
          document.body.append(script);
          const slipped = '<img src="data:image/png,x" onerror="window.slippedIn = true">';
          document.body.insertAdjacentHTML("beforeend", slipped);
          await new Promise((resolve) => setTimeout(resolve, 200));
          return window.slippedIn === true;
        }"""
    )
    assert ran is False


def test_every_part_of_the_page_is_sent_with_the_policy(http: httpx.Client) -> None:
    for url in ("/", *(f"/static/{path.name}" for path in (FOLDER / "page").iterdir())):
        answer = http.get(url)
        assert answer.status_code == 200
        assert answer.headers["Content-Security-Policy"] == PAGE_POLICY
        again = http.get(url, headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fdocs%2Fstart.js", "%2e%2e%2fschemas.py", "%00"])
def test_what_is_no_part_of_the_page_is_not_found(http: httpx.Client, name: str) -> None:
    assert http.get(f"/static/{name}").status_code == 404


def test_every_module_is_asked_for_at_once(http: httpx.Client) -> None:
    asked = set(re.findall(r'href="static/([\w.]+\.js)"', http.get("/").text))
    assert asked == {path.name for path in (FOLDER / "page").glob("*.js")} - {"app.js"}


def test_the_whole_page_is_small() -> None:
    sizes = [len(gzip.compress(path.read_bytes())) for path in (FOLDER / "page").iterdir()]
    assert sum(sizes) < LARGEST_BYTES


def test_a_file_of_no_known_kind_is_refused_in_words(page: Page, tmp_path: Path, expected: list[str]) -> None:
    expected.append(f"{REFUSED}415")
    page.set_input_files("#file", picture(tmp_path, b"no picture at all" * 10, "notes.txt"))
    expect(page.locator(".message.problem")).to_contain_text(
        "JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read"
    )
    page.click(".message.problem button")
    expect(page.locator(".message.problem")).to_have_count(0)


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(page: Page) -> None:
    page.evaluate(
        """() => {
          const carried = new DataTransfer();
          carried.items.add(new File([new Uint8Array(40e6)], "large.png", { type: "image/png" }));
          const given = { bubbles: true, cancelable: true, dataTransfer: carried };
          document.body.dispatchEvent(new DragEvent("drop", given));
        }"""
    )
    told = page.locator(".message.problem")
    expect(told).to_contain_text(
        "This file has 40 MB; the service takes 33.6 MB. Make it smaller and try again."
    )


def test_an_address_of_a_photograph_that_is_gone_shows_the_sample(
    opening: Opening, expected: list[str]
) -> None:
    expected.append(f"{REFUSED}404")
    page = opening(f"image={'0' * 64}")
    expect(page.locator(".message").first).to_contain_text("not kept any more")


def test_a_busy_service_is_asked_again(opening: Opening, tmp_path: Path, expected: list[str]) -> None:
    expected.append(f"{REFUSED}503")
    put(tmp_path / "models", "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    with running(tmp_path, tmp_path / "models", max_in_flight=1) as busy:
        with busy.pipeline.admission.permit() as permit:
            permit.acquire()
            page = opening(url=busy.url, wait=False)
            expect(page.locator(".message.busy").first).to_contain_text(
                "The service is busy: trying again in"
            )
            permit.release()
        expect(page.locator("#channel-facts .histogram")).to_be_visible(timeout=30_000)
        page.context.close()


def test_a_key_is_asked_for_and_kept_in_memory_only(
    opening: Opening, tmp_path: Path, expected: list[str]
) -> None:
    expected.append(f"{REFUSED}401")
    put(tmp_path / "models", "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    stored = f"tester:infer:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
    with running(tmp_path, tmp_path / "models", keys=(stored,)) as locked:
        page = opening(url=locked.url, wait=False)
        page.fill("#key-field", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-reason")).to_contain_text("That key is not accepted")
        page.fill("#key-field", TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#channel-facts .histogram")).to_be_visible()
        expect(page.locator(".photograph")).to_have_js_property("complete", True)
        sources = page.locator(".row img, .photograph").evaluate_all("all => all.map((image) => image.src)")
        assert sources
        assert all(source.startswith("blob:") for source in sources)
        kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
        assert TOKEN not in kept
        page.context.close()


def test_the_readme_tells_where_it_is() -> None:
    assert "open <http://127.0.0.1:8000>" in (ROOT / "README.md").read_text()


def test_large_photographs_of_real_kinds_come_in(page: Page, tmp_path: Path) -> None:
    before = page.url
    page.set_input_files("#file", picture(tmp_path, encoded(photograph(3000, 2000), "JPEG"), "large.jpg"))
    expect(page).not_to_have_url(before)
    expect(page.locator(".photograph")).to_have_js_property("naturalWidth", 3000)
