"""Images kept for a while, and feature maps one can link to."""

import asyncio
import hashlib
import io
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from fastapi import FastAPI
from PIL import Image

from service.app import make_app
from service.declarations import schema_of
from service.pipeline import images as images_module
from service.settings import Settings
from service.web.queries import KeptFeaturesQuery, KeptRenderQuery, KeptStatisticsQuery
from tests.builders import encoded, photograph, put, small_cnn
from tests.web.inside import statuses_while_loading

IMAGE = encoded(photograph(seed=5), "JPEG", quality=90)
KINDS = {
    "features": (KeptFeaturesQuery, {"model": "small"}),
    "render": (KeptRenderQuery, {"model": "small", "layer": "stem/relu"}),
    "statistics": (KeptStatisticsQuery, {"model": "small"}),
}
# One other value for each parameter that changes an answer.
OTHER = {
    "model": "fixed",
    "version": "1",
    "digest": None,
    "preprocessing_digest": None,
    "layers": "block2.add",
    "layer": "block2.add",
    "size": "64x64",
    "channels": "0",
    "region": "pct:0,0,50,50",
    "pool": "avg",
    "grid": "2x2",
    "dtype": "float16",
    "format": "safetensors",
    "compress": "deflate",
    "style": "heatmap",
    "channel": "1",
    "combine": "max",
    "normalize": "channel",
    "vmin": "0",
    "vmax": "1",
    "clip": "2",
    "colormap": "viridis",
    "columns": "2",
    "scale": "3",
    "image_weight": "0.25",
    "target": "1",
}
# What each parameter needs beside it, so that both questions have an answer.
ALSO = {
    "channel": {"style": "channel", "channel": "0"},
    "target": {"style": "cam", "layer": "block2.add", "target": "0"},
    "vmin": {"normalize": "fixed", "vmin": "-5", "vmax": "5"},
    "vmax": {"normalize": "fixed", "vmin": "-5", "vmax": "5"},
}


@pytest.fixture(scope="module")
def kept(client: httpx.Client) -> str:
    answer = client.post("/v1/images", content=IMAGE)
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def get(
    client: httpx.Client,
    kept: str,
    kind: str,
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    **query: Any,
) -> httpx.Response:
    return client.get(f"/v1/images/{kept}/{kind}", params={**KINDS[kind][1], **query}, headers=headers or {})


def test_an_image_is_kept_under_the_hash_of_its_bytes(client: httpx.Client) -> None:
    body = encoded(photograph(seed=77), "PNG")
    first, again = (client.post("/v1/images", content=body) for _ in range(2))
    told = first.json()
    assert (first.status_code, again.status_code) == (201, 200)
    assert told["id"] == hashlib.sha256(body).hexdigest()
    assert (told["width"], told["height"], told["media_type"]) == (120, 90, "image/png")
    assert first.headers["Location"] == f"/v1/images/{told['id']}"


def test_the_bytes_come_back_and_may_do_nothing_as_a_document(client: httpx.Client, kept: str) -> None:
    answer = client.get(f"/v1/images/{kept}")
    assert answer.content == IMAGE
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_a_deleted_image_is_gone_even_where_the_client_still_holds_its_maps(client: httpx.Client) -> None:
    kept = client.post("/v1/images", content=encoded(photograph(seed=99))).json()["id"]
    etag = get(client, kept, "features").headers["ETag"]
    assert client.delete(f"/v1/images/{kept}").status_code == 204
    for answer in (
        get(client, kept, "features", {"If-None-Match": etag}),
        client.get(f"/v1/images/{kept}"),
        client.delete(f"/v1/images/{kept}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "image-not-found")


@pytest.mark.parametrize("image_id", ["x", "0" * 63, "A" * 64, "../" + "0" * 61])
def test_an_id_that_is_none_is_refused(client: httpx.Client, image_id: str) -> None:
    assert client.get(f"/v1/images/{image_id}/features", params={"model": "small"}).status_code in (404, 422)


def test_what_is_no_image_is_not_kept(client: httpx.Client) -> None:
    assert client.post("/v1/images", content=b"hello").json()["code"] == "unsupported-image-format"
    assert client.post("/v1/images", content=b"").json()["code"] == "malformed-request"


def test_a_link_answers_as_the_post_does(client: httpx.Client, kept: str) -> None:
    posted = client.post("/v1/models/small/features", content=IMAGE, params={"layers": "all", "pool": "avg"})
    linked = get(client, kept, "features", layers="all", pool="avg")
    assert linked.content == posted.content
    drawn = client.post(
        "/v1/models/small/render", content=IMAGE, params={"layer": "stem/relu", "style": "overlay"}
    )
    assert get(client, kept, "render", style="overlay").content == drawn.content


def test_a_link_ignores_accept(client: httpx.Client, kept: str) -> None:
    assert (
        get(client, kept, "features", {"Accept": "text/html"}).headers["Content-Type"] == "application/x-npz"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_question_has_the_same_weak_tag(client: httpx.Client, kept: str, kind: str) -> None:
    first, again = (get(client, kept, kind) for _ in range(2))
    assert first.headers["ETag"] == again.headers["ETag"]
    assert first.headers["ETag"].startswith('W/"')
    assert first.headers["Cache-Control"] == "public, no-cache"


@pytest.mark.parametrize("kind", KINDS)
def test_a_matching_tag_is_a_304(client: httpx.Client, kept: str, kind: str) -> None:
    etag = get(client, kept, kind).headers["ETag"]
    for given in (etag, etag.removeprefix("W/"), f'"other", {etag}'):
        answer = get(client, kept, kind, {"If-None-Match": given})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    assert get(client, kept, kind, {"If-None-Match": '"other"'}).status_code == 200
    twice = [("If-None-Match", '"other"'), ("If-None-Match", etag)]
    assert get(client, kept, kind, twice).status_code == 304


# They say which model is meant, whose identity is part of the tag, but not what is asked of it.
PINS = ("version", "digest", "preprocessing_digest")


def parameters() -> list[tuple[str, str]]:
    return [
        (kind, name)
        for kind, (schema, _) in KINDS.items()
        for name in schema_of(schema)
        if OTHER.get(name, name) is not None and name not in ("timeout_s", *PINS)
    ]


@pytest.mark.parametrize(("kind", "name"), parameters())
def test_every_parameter_that_changes_the_answer_changes_the_tag(
    client: httpx.Client, kept: str, kind: str, name: str
) -> None:
    """Fails for a new parameter until OTHER has a value for it."""
    value = {"statistics": {}, "render": {"format": "webp"}}.get(kind, {}).get(name, OTHER[name])
    also = ALSO.get(name, {})
    answers = [get(client, kept, kind, **also), get(client, kept, kind, **{**also, name: value})]
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    assert len({answer.headers["ETag"] for answer in answers}) == 2


def test_pins_that_match_do_not_change_the_tag(client: httpx.Client, kept: str) -> None:
    model = client.get("/v1/models/small").json()
    pins = {name: model[name] for name in PINS}
    first, pinned = get(client, kept, "features"), get(client, kept, "features", **pins)
    assert first.headers["ETag"] == pinned.headers["ETag"]


def test_the_deadline_is_no_part_of_the_answer(client: httpx.Client, kept: str) -> None:
    assert (
        get(client, kept, "features").headers["ETag"]
        == get(client, kept, "features", timeout_s=9).headers["ETag"]
    )


def pinned(client: httpx.Client) -> dict[str, str]:
    told = client.get("/v1/models/small").json()
    return {name: told[name] for name in ("version", "digest", "preprocessing_digest")}


def test_only_a_url_that_pins_model_and_preprocessing_lasts(client: httpx.Client, kept: str) -> None:
    pins = pinned(client)
    lasting = get(client, kept, "render", **pins).headers["Cache-Control"]
    assert "max-age=86400, immutable" in lasting
    for name in pins:
        fewer = {other: value for other, value in pins.items() if other != name}
        assert "no-cache" in get(client, kept, "render", **fewer).headers["Cache-Control"]
    for name in ("digest", "preprocessing_digest"):
        assert get(client, kept, "render", **{**pins, name: "0" * 64}).status_code == 404


def test_errors_are_not_stored(client: httpx.Client, kept: str) -> None:
    assert get(client, kept, "render", layer="nothing").headers["Cache-Control"] == "no-store"


def test_head_answers_without_a_body(client: httpx.Client, kept: str) -> None:
    head = client.head(f"/v1/images/{kept}/render", params=KINDS["render"][1])
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["ETag"]


async def in_process(app: FastAPI, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        stored = await client.post("/v1/images", content=IMAGE)
        image = stored.json()["id"]
        jobs = [client.request(method, url.format(image=image), **given) for method, url, given in requests]
        return list(await asyncio.gather(*jobs))


@pytest.fixture
def single(tmp_path: Path) -> FastAPI:
    folder = tmp_path / "models"
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    return make_app(Settings(models=(folder,), image_store=str(tmp_path / "images.sqlite3")))


def test_one_forward_pass_serves_sixty_four_pictures_of_one_layer(single: FastAPI) -> None:
    url = "/v1/images/{image}/render?model=small&layer=block2.add&style=channel&channel="
    requests = [("GET", f"{url}{i % 16}&scale={1 + i // 16}", {}) for i in range(64)]
    answers = asyncio.run(in_process(single, *requests))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) > 32
    pipeline = single.state.pipeline
    model = pipeline.catalog.get("small", None)
    steps = model.plan([model.layers().by_name["block2.add"]]).steps
    assert pipeline.runs == len(steps)  # Each part of the network once.


def test_a_304_runs_no_network(single: FastAPI) -> None:
    async def ask() -> tuple[int, int]:
        transport = httpx.ASGITransport(app=single)
        async with (
            single.router.lifespan_context(single),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            image = (await client.post("/v1/images", content=IMAGE)).json()["id"]
            url = f"/v1/images/{image}/features?model=small"
            etag = (await client.get(url)).headers["ETag"]
            runs = single.state.pipeline.runs
            answer = await client.get(url, headers={"If-None-Match": etag})
            return answer.status_code, single.state.pipeline.runs - runs

    assert asyncio.run(ask()) == (304, 0)


def test_statistics_agree_with_the_arrays(client: httpx.Client, kept: str) -> None:
    (told,) = get(client, kept, "statistics", layers="block1.relu").json()["layers"]
    values = np.load(io.BytesIO(get(client, kept, "features", layers="block1.relu").content))["block1.relu"]
    exact = values.astype(np.float64)
    assert told["shape"] == list(values.shape)
    np.testing.assert_allclose(
        [told["min"], told["max"], told["mean"], told["std"], told["sparsity"]],
        [exact.min(), exact.max(), exact.mean(), exact.std(), (exact == 0).mean()],
        rtol=1e-12,
    )
    np.testing.assert_allclose(told["channel_means"], exact.mean(axis=(0, 2, 3)), rtol=1e-12)
    assert told["dead_channels"] == np.flatnonzero((exact == 0).all(axis=(0, 2, 3))).tolist()
    assert told["non_finite"] == 0


@pytest.mark.parametrize("style", ["grid", "channel", "heatmap", "overlay", "pca", "eigencam"])
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_every_style_is_a_picture_in_every_format(
    client: httpx.Client, kept: str, style: str, kind: str
) -> None:
    extra = {"channel": 0} if style == "channel" else {}
    answer = get(client, kept, "render", style=style, format=kind, **extra)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == f"image/{kind}"
    assert "Content-Encoding" not in answer.headers
    assert "vmax" in answer.headers["Featuremaps-Scale"] or style == "pca"
    Image.open(io.BytesIO(answer.content)).load()


def test_a_class_map_is_exact(client: httpx.Client, kept: str) -> None:
    answer = get(client, kept, "render", layer="block2.add", style="cam", target=3)
    assert answer.status_code == 200, answer.text
    wrong = get(client, kept, "render", layer="stem/relu", style="cam", target=3)
    assert wrong.status_code == 422
    assert "block2.add" in wrong.json()["detail"]
    assert get(client, kept, "render", layer="block2.add", style="cam", target=5).status_code == 422
    assert get(client, kept, "render", layer="block2.add", style="cam").status_code == 422


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"layer": "nothing"}, 404),
        ({"layer": "stem/*"}, 422),
        ({"layer": "logits"}, 200),
        ({"layer": "logits", "style": "overlay"}, 422),
        ({"colormap": "nothing"}, 422),
        ({"colormap": "../../etc/passwd"}, 422),
        ({"style": "channel"}, 422),
        ({"style": "channel", "channel": 8}, 422),
        ({"normalize": "fixed"}, 422),
        ({"normalize": "fixed", "vmin": 1, "vmax": 0}, 422),
        ({"vmin": "nan"}, 422),
        ({"scale": 1024, "columns": 1}, 422),
        ({"channels": "top:0"}, 422),
        ({"channels": "top:9"}, 422),
        ({"channels": "3,1"}, 200),
        ({"region": "0,0,0,0"}, 422),
        ({"region": "5000,5000,1,1"}, 422),
        ({"region": "pct:50,50,10,10"}, 200),
        ({"region": "pct:50,50,10,10", "style": "overlay"}, 200),
    ],
)
def test_bad_drawings_are_refused_and_good_ones_drawn(
    client: httpx.Client, kept: str, query: dict[str, Any], status: int
) -> None:
    answer = get(client, kept, "render", **query)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "query",
    [
        {"grid": "0x0"},
        {"grid": "2x2", "pool": "avg"},
        {"channels": ""},
        {"dtype": "uint8", "format": "npy", "layers": "logits"},
    ],
)
def test_bad_reductions_are_refused(client: httpx.Client, kept: str, query: dict[str, str]) -> None:
    assert get(client, kept, "features", **query).status_code == 422


def test_filters_are_the_weights_of_the_convolution(client: httpx.Client, repository: Path) -> None:
    proto = onnx.load(repository / "small/1/model.onnx")
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for layer, name in (("stem/relu", "w1"), ("block,1", "w2")):
        answer = client.get("/v1/models/small/filters", params={"layer": layer})
        assert np.array_equal(np.load(io.BytesIO(answer.content))["weights"], expected[name])
    assert client.get("/v1/models/small/filters", params={"layer": "pool"}).json()["code"] == "no-filters"


def test_filters_that_read_the_image_are_drawn_in_colour(client: httpx.Client) -> None:
    first, second = (
        Image.open(
            io.BytesIO(client.get("/v1/models/small/filters", params={"layer": x, "format": "png"}).content)
        )
        for x in ("stem/relu", "block,1")
    )
    assert (first.mode, second.mode) == ("RGB", "P")


def test_filters_of_several_layers_at_once_are_refused(client: httpx.Client) -> None:
    answer = client.get("/v1/models/small/filters", params={"layer": "stem/*"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")


def test_filters_have_a_tag(client: httpx.Client) -> None:
    answer = client.get("/v1/models/small/filters", params={"layer": "stem/relu"})
    again = client.get(
        "/v1/models/small/filters",
        params={"layer": "stem/relu"},
        headers={"If-None-Match": answer.headers["ETag"]},
    )
    assert again.status_code == 304


def test_every_kept_query_names_its_model() -> None:
    assert all("model" in schema_of(schema) for schema, _ in KINDS.values())


def test_maps_of_a_kept_image_have_a_deadline_while_their_model_loads(tmp_path: Path) -> None:
    put(tmp_path / "models", "slow", small_cnn())
    store = str(tmp_path / "images.sqlite3")
    app = make_app(Settings(models=(tmp_path / "models",), image_store=store, load="lazy", max_in_flight=2))
    image = hashlib.sha256(IMAGE).hexdigest()
    url = f"/v1/images/{image}/features?model=slow&layers=stem/relu&timeout_s=0.3"
    assert statuses_while_loading(app, "slow", url, IMAGE) == [503, 503, 503, 504, 504]


def test_an_image_that_takes_long_to_decode_has_a_deadline_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "models", "small", small_cnn())
    settings = Settings(
        models=(tmp_path / "models",),
        image_store=str(tmp_path / "images.sqlite3"),
        threads=1,
        max_timeout_s=0.5,
    )
    app, may_end = make_app(settings), threading.Event()

    def forever(*_: object, **__: object) -> None:
        assert may_end.wait(20)

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            url = f"/v1/images/{(await client.post('/v1/images', content=IMAGE)).json()['id']}"
            monkeypatch.setattr(images_module, "decode", forever)
            slow = asyncio.create_task(client.post("/v1/images", content=IMAGE + b"another"))
            await asyncio.sleep(0.1)
            found = [(await client.get(url)).status_code, (await client.delete(url)).status_code]
            return [*found, (await slow).status_code]

    try:
        assert asyncio.run(asyncio.wait_for(ask(), 20)) == [200, 204, 504]
    finally:
        may_end.set()
        app.state.pipeline.close()


def test_a_model_that_is_replaced_meanwhile_answers_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers would be kept for a day under the digest of the one before."""
    put(tmp_path / "models", "small", small_cnn())
    store = str(tmp_path / "images.sqlite3")
    app = make_app(Settings(models=(tmp_path / "models",), image_store=store, load="lazy"))
    pipeline = app.state.pipeline
    other = small_cnn()
    other.producer_name = "somebody else"

    async def replace(*_: object) -> None:
        put(tmp_path / "models", "small", other)
        await pipeline.models.load("small")

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            image = (await client.post("/v1/images", content=IMAGE)).json()["id"]
            digest = (await client.get("/v1/models/small")).json()["digest"]
            url = f"/v1/images/{image}/features?model=small&version=1&digest={digest}&layers=stem/relu"
            with monkeypatch.context() as patch:
                patch.setattr(pipeline.images, "peek", replace)
                return await client.get(url), await client.get(url)

    try:
        meanwhile, later = asyncio.run(ask())
    finally:
        pipeline.close()
    assert (meanwhile.status_code, meanwhile.json()["code"]) == (503, "not-ready")
    assert later.status_code == 404


def test_settings_that_change_the_numbers_change_the_tag(tmp_path: Path) -> None:
    put(tmp_path / "models", "small", small_cnn())

    async def ask(app: FastAPI) -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            image = (await client.post("/v1/images", content=IMAGE)).json()["id"]
            answer = await client.get(f"/v1/images/{image}/features?model=small&layers=stem/relu")
            return answer.headers["ETag"]

    tags = []
    for number, more in enumerate([{}, {"tf32": True}, {"graph_optimization": "off"}, {}]):
        store = str(tmp_path / f"images{number}.sqlite3")
        app = make_app(Settings(models=(tmp_path / "models",), image_store=store, **more))
        try:
            tags.append(asyncio.run(ask(app)))
        finally:
            app.state.pipeline.close()
    assert tags[0] == tags[3]
    assert len(set(tags)) == 3
