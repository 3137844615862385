"""Traces, as a real receiver of OTLP over HTTP gets them."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.servers import serving
from tests.test_command import featuremaps

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = {"queue", "decode", "preprocess", "run", "reduce", "encode", "compress"}
SERVER_KIND, ERROR = 2, 2


class Received:
    """What was sent: as bytes, and as spans."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.resource: dict[str, Any] = {}
        self.spans: list[Any] = []

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = attributes(of_resource.resource)
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans

    def named(self, name: str) -> Any:
        (span,) = [span for span in self.spans if span.name == name]
        return span


def attributes(of: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


@contextmanager
def receiving() -> Iterator[tuple[str, Received]]:
    received = Received()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(client: httpx.Client) -> tuple[int, int]:
    """One answer and one refusal; when, in nanoseconds."""
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "asked"}
    start = time.time_ns()
    image = encoded(photograph(32, 32))
    client.post(
        "/v1/models/small/features?layers=stem/relu", content=image, headers=headers
    ).raise_for_status()
    client.post(
        "/v1/models/SECRET/features?layers=SECRET", content=b"SECRET", headers={"traceparent": "SECRET"}
    )
    return start, time.time_ns()


@pytest.fixture(scope="module")
def seen(repository: Path) -> tuple[Received, tuple[int, int]]:
    """What a service sent until it had ended."""
    with receiving() as (url, received):
        with (
            serving("--models", str(repository), "--trace-endpoint", url) as server,
            server.client() as client,
        ):
            when = ask(client)
        return received, when


def test_a_request_is_a_span_of_its_clients_trace(seen: tuple[Received, tuple[int, int]]) -> None:
    received, (start, end) = seen
    (span,) = [s for s in received.spans if s.parent_span_id.hex() == PARENT]
    assert (span.name, span.trace_id.hex(), span.kind) == (
        "POST /v1/models/{model}/features",
        TRACE,
        SERVER_KIND,
    )
    assert start <= span.start_time_unix_nano < span.end_time_unix_nano <= end
    told = attributes(span)
    assert told.pop("http.response.body.size") > 1000
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}/features",
        "http.response.status_code": 200,
        "http.request.body.size": len(encoded(photograph(32, 32))),
        "featuremaps.request_id": "asked",
        "featuremaps.model": "small",
    }
    assert received.resource["service.name"] == "featuremaps"


def test_its_stages_are_spans_below_it_one_after_another(seen: tuple[Received, tuple[int, int]]) -> None:
    received, _ = seen
    (span,) = [s for s in received.spans if s.parent_span_id.hex() == PARENT]
    below = [s for s in received.spans if s.parent_span_id == span.span_id]
    assert {s.name for s in below} == STAGES
    assert all(s.trace_id == span.trace_id for s in below)
    assert span.start_time_unix_nano <= min(s.start_time_unix_nano for s in below)
    assert max(s.end_time_unix_nano for s in below) <= span.end_time_unix_nano
    by_name = {s.name: s for s in below}
    for first, second in (
        ("decode", "preprocess"),
        ("preprocess", "run"),
        ("run", "reduce"),
        ("reduce", "encode"),
    ):
        assert by_name[first].end_time_unix_nano <= by_name[second].start_time_unix_nano


def test_a_refusal_is_told_by_its_code_and_nothing_that_a_client_wrote(
    seen: tuple[Received, tuple[int, int]],
) -> None:
    received, _ = seen
    (span,) = [s for s in received.spans if attributes(s).get("http.response.status_code") == 404]
    assert (span.parent_span_id, attributes(span)["error.type"]) == (b"", "model-not-found")
    assert not [body for body in received.bodies if b"SECRET" in body or b"stem/relu" in body]


def test_without_the_extra_it_is_one_line(tmp_path: Path) -> None:
    # FastAPI brings OpenTelemetry's interface along; the extra is what makes and sends spans.
    package = tmp_path / "opentelemetry/sdk"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError(name='opentelemetry.sdk')\n")
    words = ("serve", "--port", "0", "--trace-endpoint", "http://127.0.0.1:9/v1/traces")
    done = featuremaps(*words, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (done.returncode, done.stderr.decode()) == (
        2,
        "featuremaps: trace_endpoint needs OpenTelemetry: pip install 'featuremaps[tracing]'\n",
    )


def test_an_address_that_is_none_is_refused() -> None:
    done = featuremaps("serve", "--trace-endpoint", "collector:4318")
    assert done.returncode == 2
    assert b"setting trace_endpoint" in done.stderr
