"""Clients that leave, stall, send too much, or come when the service is full: over real sockets."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import helper

from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime, Stop, Stopped
from tests.builders import encoded, model, photograph, put, small_cnn, weight
from tests.web.inside import Running, running, slow_cnn

SLOW = "/v1/models/slow/features?layers=last&size=512x512&format=npy"
LONG = "/v1/models/small/features?layers=stem/conv&size=1920x1920&format=npy"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put(folder, "slow", slow_cnn(), toml="[input]\nsize = [16, 16]\n")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    names = ["image", *(f"{number:04000}" for number in range(1500))]
    relus = [helper.make_node("Relu", [one], [next_one]) for one, next_one in pairwise(names)]
    put(
        folder,
        "deep",
        model(relus, {"image": ["n", 3, "h", "w"]}, names[-1:], []),
        toml="[input]\nsize = [8, 8]\n",
    )
    wide = helper.make_node("Conv", ["image", "weight"], ["last"])
    weights = [weight("weight", 60_000, 3, 5, 5)]
    put(
        folder,
        "wide",
        model([wide], {"image": ["n", 3, "h", "w"]}, ["last"], weights),
        toml="[input]\nsize = [8, 8]\n",
    )
    return folder


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[Running]:
    with running(models, max_in_flight=3, max_stall_s=1.0, max_body_bytes=1 << 20) as service:
        yield service


@pytest.fixture(scope="module")
def image() -> bytes:
    return encoded(photograph(64, 64), "PNG")


def post(url: str, body: bytes, headers: str = "") -> bytes:
    return f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def answer_to(connection: socket.socket) -> tuple[int, dict[str, object], http.client.HTTPResponse]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    content = answer.read()
    problem = content.startswith(b"{")
    return answer.status, json.loads(content) if problem else {}, answer


@contextlib.contextmanager
def leaving(service: Running, stage: str) -> Iterator[None]:
    """The metrics tell that one client left at a stage, and that nothing of it is left over."""
    before = service.metric("featuremaps_cancelled_total", stage=stage)
    yield
    service.until_idle(5)
    assert service.metric("featuremaps_cancelled_total", stage=stage) == before + 1
    for gauge in ("featuremaps_in_flight", "featuremaps_held_bytes", "featuremaps_queued"):
        assert service.metric(gauge) == 0


def test_a_client_that_leaves_while_sending_leaves_nothing_behind(service: Running, image: bytes) -> None:
    with leaving(service, "sending"), service.connect() as client:
        client.sendall(post(SLOW, bytes(500_000))[:100_000])
        service.until(lambda: service.admission.held_bytes > 50_000)


def test_a_client_that_leaves_while_its_layers_are_computed_ends_the_run(
    service: Running, image: bytes
) -> None:
    with leaving(service, "running"), service.connect() as client:
        client.sendall(post(SLOW, image))
        service.until(lambda: service.admission.held_bytes > 10_000_000)  # It is being computed.


def test_a_client_that_leaves_while_it_waits_is_never_begun(service: Running, image: bytes) -> None:
    """One runs, one is decoded and waits for the network, and one more waits to be decoded."""
    with leaving(service, "queued"), contextlib.ExitStack() as clients:
        running, ready, last = (clients.enter_context(service.connect()) for _ in range(3))
        running.sendall(post(SLOW, image))
        service.until(lambda: service.admission.held_bytes > 10_000_000)
        ready.sendall(post(SLOW, image + b" "))
        service.until(lambda: service.metric("featuremaps_queued", pool="run") == 1)
        last.sendall(post(SLOW, image + b"  "))
        service.until(lambda: service.metric("featuremaps_queued", pool="prepare") == 1)
        last.close()
        service.until(lambda: service.admission.requests == 2, 2)
        assert service.metric("featuremaps_queued") == 1


def test_a_client_that_takes_nothing_is_given_up(service: Running, image: bytes) -> None:
    with leaving(service, "sending_answer"), service.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post(LONG, image))
        service.until(lambda: service.admission.held_bytes > 5_000_000)
        service.until_idle(5)


def test_a_list_of_layers_that_nobody_reads_is_held(service: Running) -> None:
    with service.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /v1/models/deep/layers HTTP/1.1\r\nHost: x\r\n\r\n")
        service.until(lambda: service.admission.held_bytes > 6_000_000 and not service.admission.requests)
    service.until_idle()


def test_a_slow_reader_keeps_no_place_and_gets_everything(service: Running, image: bytes) -> None:
    with service.connect() as client:
        client.sendall(post(LONG, image))
        service.until(lambda: service.admission.held_bytes > 5_000_000 and not service.admission.requests)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        taken = 0
        while part := answer.read(1 << 20):
            taken += len(part)
            time.sleep(0.02)
        assert taken == int(answer.headers["Content-Length"]) > 1920 * 1920 // 4 * 8 * 4
    service.until_idle()


@pytest.mark.parametrize("what", ["image", "filters"])
def test_what_waits_for_a_reader_is_held_by_the_count(models: Path, what: str) -> None:
    large = encoded(photograph(64, 64), "PNG") + bytes(16 << 20)
    with running(models) as service:
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
            kept = client.post("/v1/images", content=large).raise_for_status().json()["id"]
        ways = {"image": f"/v1/images/{kept}", "filters": "/v1/models/wide/filters?layer=last&format=npy"}
        with service.connect() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(f"GET {ways[what]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            service.until(lambda: service.admission.held_bytes > 15_000_000)
            service.until(lambda: service.admission.requests == 0)
        service.until_idle()


def test_a_full_service_gives_no_kept_image_no_layers_and_no_filters(service: Running, image: bytes) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
        kept = client.post("/v1/images", content=image).raise_for_status().json()["id"]
        service.until_idle()
        with contextlib.ExitStack() as full:
            for _ in range(service.admission.max_requests):
                full.enter_context(service.admission.permit()).acquire()
            model = "/v1/models/small"
            for url in (f"/v1/images/{kept}", f"{model}/layers", f"{model}/filters?layer=stem/conv"):
                assert client.get(url).status_code == 503


def test_a_client_that_sends_nothing_more_is_told(service: Running, image: bytes) -> None:
    with service.connect() as client:
        client.sendall(post(SLOW, image)[:-10])
        status, problem, _ = answer_to(client)
    assert (status, problem["code"]) == (504, "deadline-exceeded")
    service.until_idle()


@pytest.mark.parametrize("pause_s", [0.1, 0.8])
def test_a_client_that_sends_byte_after_byte_is_told_too(
    service: Running, image: bytes, pause_s: float
) -> None:
    """However little it waits with each: what it has sent would be held without end."""
    with service.connect() as client:
        client.sendall(post(SLOW, image)[:-60])
        client.settimeout(pause_s)
        for byte in post(SLOW, image)[-60:-1]:
            client.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                client.recv(1, socket.MSG_PEEK)
                break
        else:
            pytest.fail("all of it was waited for")
        client.settimeout(5)
        status, problem, _ = answer_to(client)
    assert (status, problem["code"]) == (504, "deadline-exceeded")
    service.until_idle()


def test_a_client_that_sends_little_at_a_time_but_enough_is_answered(service: Running, image: bytes) -> None:
    """For longer than it may do nothing."""
    body = image + bytes(200_000)
    with service.connect() as client:
        client.sendall(post(LONG.replace("1920x1920", "64x64"), body)[: -len(body)])
        for start in range(0, len(body), 8_000):
            client.sendall(body[start : start + 8_000])
            time.sleep(0.1)
        assert answer_to(client)[0] == 200
    service.until_idle()


def test_a_full_service_refuses_at_once_and_tells_when_to_come_back(service: Running, image: bytes) -> None:
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(service.connect()) for _ in range(3)]
        for i, client in enumerate(waiting):
            client.sendall(post(SLOW, image + b" " * i))
        service.until(lambda: service.admission.requests == 3)
        late = stack.enter_context(service.connect())
        start = time.perf_counter()
        late.sendall(post(SLOW, image))
        status, problem, answer = answer_to(late)
        assert time.perf_counter() - start < 0.5
    assert (status, problem["code"]) == (503, "overloaded")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    service.until_idle(3)


def test_a_refused_body_is_read_so_far_that_the_client_reads_the_refusal(service: Running) -> None:
    """One announced too long, and one that never tells, by clients that send all before they read."""
    chunked = b"Transfer-Encoding: chunked\r\n\r\n" + (b"%x\r\n" % 65536 + bytes(65536) + b"\r\n") * 48
    for head in (b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000), chunked + b"0\r\n\r\n"):
        with service.connect() as client:
            client.sendall(f"POST {SLOW} HTTP/1.1\r\nHost: x\r\n".encode() + head)
            status, problem, answer = answer_to(client)
            assert (status, problem["code"]) == (413, "body-too-large")
            assert answer.headers["Connection"] == "close"
    service.until_idle()


def test_a_client_that_asks_before_it_sends_is_refused_without_waiting_for_its_body(service: Running) -> None:
    with service.connect() as client:
        client.settimeout(3)
        head = f"POST {SLOW} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\nExpect: 100-continue\r\n\r\n"
        client.sendall(head.encode())
        status, problem, answer = answer_to(client)
        assert (status, problem["code"], answer.headers["Connection"]) == (413, "body-too-large", "close")
        assert client.recv(1) == b""


def test_after_a_refusal_the_connection_is_used_again(service: Running, image: bytes) -> None:
    with service.connect() as client:
        client.sendall(post("/v1/models/nothing/features", image))
        assert answer_to(client)[0] == 404
        client.sendall(post("/v1/models/small/features?layers=stem/relu", image))
        assert answer_to(client)[0] == 200


def test_a_run_is_ended_from_another_thread(tmp_path: Path) -> None:
    file = put(tmp_path, "slow", slow_cnn(), toml="[input]\nsize = [16, 16]\n")
    network = load("slow", "1", file, tmp_path / "slow", Runtime(), PlanCache(1 << 30))
    stop = Stop()
    threading.Timer(0.3, stop.set).start()
    start = time.perf_counter()
    with pytest.raises(Stopped):
        network.run(np.zeros((1, 3, 512, 512), np.float32), [network.layers().by_name["last"]], stop)
    assert time.perf_counter() - start < 2
    with pytest.raises(Stopped):
        network.run(np.zeros((1, 3, 16, 16), np.float32), [network.layers().by_name["last"]], stop)
