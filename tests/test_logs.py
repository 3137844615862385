"""Log lines: what they tell, and that nobody can forge one."""

import io
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.cli.logs import JsonLines, TextLines
from tests.builders import encoded, photograph
from tests.servers import Server, serving

FORMATTERS = [TextLines(None), TextLines(1), JsonLines(None), JsonLines(1)]


def record(text: str, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("featuremaps.test", logging.INFO, __file__, 1, "%s", (text,), None)
    made.__dict__.update(more)
    return made


@given(st.text())
@pytest.mark.parametrize("formatter", FORMATTERS, ids=["text", "text-worker", "json", "json-worker"])
def test_whatever_is_told_stays_on_one_line(formatter: logging.Formatter, text: str) -> None:
    for made in (record(text), record("", fields=lambda: {"path": text})):
        assert len(formatter.format(made).splitlines()) == 1


@given(st.text())
def test_json_gives_back_what_was_told(text: str) -> None:
    assert json.loads(JsonLines(None).format(record(text)))["message"] == text
    assert json.loads(JsonLines(None).format(record("", fields=lambda: {"path": text})))["path"] == text


@pytest.mark.parametrize("make", [TextLines, JsonLines])
def test_a_traceback_cannot_be_mistaken_for_a_line(make: Callable[[int | None], logging.Formatter]) -> None:
    try:
        raise ValueError("no\nERROR featuremaps.access GET '/' 200")
    except ValueError:
        made = record("it failed", exc_info=sys.exc_info())
    first, *rest = make(None).format(made).splitlines()
    assert "it failed" in first
    assert all(line.startswith("    ") for line in rest)


@pytest.fixture(scope="module")
def server(repository: Path) -> Server:
    """A service that has answered, been asked for what is not there, and ended."""
    image = encoded(photograph(32, 32))
    with serving("--models", str(repository), "--log-format", "json") as server, server.client() as client:
        headers = {"X-Request-Id": "asked", "Authorization": "Bearer SECRET", "Accept-Encoding": "identity"}
        client.post("/v1/models/small/features?layers=stem/relu&timeout_s=9", content=image, headers=headers)
        client.get("/v1/no%0Athing?key=SECRET", headers={"X-Request-Id": "lost"})
    return server


def told(server: Server, request_id: str) -> dict[str, object]:
    (line,) = [line for line in server.log if f'"{request_id}"' in line]
    return json.loads(line)  # type: ignore[no-any-return]


def test_a_request_is_told_in_one_line(server: Server) -> None:
    line = told(server, "asked")
    when = datetime.fromisoformat(str(line.pop("time")))
    assert datetime.now(UTC) - timedelta(minutes=5) < when < datetime.now(UTC)
    stages, seconds = line.pop("stages"), line.pop("seconds")
    assert {"queue", "decode", "preprocess", "run", "reduce", "encode"} <= stages.keys()  # type: ignore[attr-defined]
    assert 0 < sum(stages.values()) <= seconds  # type: ignore[attr-defined, operator]
    assert line.pop("sent_bytes") > 8 * 16 * 16 * 4  # type: ignore[operator]
    assert line == {
        "level": "info",
        "logger": "featuremaps.access",
        "request_id": "asked",
        "method": "POST",
        "path": "/v1/models/small/features",
        "route": "/v1/models/{model}/features",
        "status": 200,
        "received_bytes": len(encoded(photograph(32, 32))),
        "model": "small",
    }


def test_a_refusal_tells_its_code_and_no_route(server: Server) -> None:
    line = told(server, "lost")
    assert (line["status"], line["code"], line["path"]) == (404, "not-found", "/v1/no\nthing")
    assert "route" not in line


def test_what_images_hold_beside_pixels_is_not_logged(repository: Path) -> None:
    """Pillow tells it to whoever debugs."""
    exif = Image.Exif()
    exif[0x013B] = "PRIVATE-NAME"  # Artist
    picture = photograph(32, 32)
    with serving("--models", str(repository), "--log-level", "debug") as server, server.client() as client:
        for kind in ("TIFF", "JPEG", "PNG"):
            stream = io.BytesIO()
            picture.save(stream, kind, exif=exif)
            url = "/v1/models/small/features?layers=stem/relu"
            assert client.post(url, content=stream.getvalue()).status_code == 200
    assert server.log
    assert not [line for line in server.log if "PRIVATE" in line or "PIL." in line]


def test_neither_queries_nor_keys_are_logged(server: Server) -> None:
    assert not [line for line in server.log if "SECRET" in line or "timeout_s" in line]
