"""The shipped proxy over real sockets, before the real service."""

import hashlib
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.builders import encoded, photograph
from tests.deploy.nginx import proxying
from tests.intake.redis_server import until
from tests.servers import Server, serving

IMAGE = encoded(photograph(seed=11), "JPEG", quality=90)
MIB = 1 << 20
# Twice the time that the proxy reads on for, so that a client reads its refusal.
CUT_OFF_WITHIN_S = 20


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with proxying(server.url, tmp_path_factory.mktemp("proxy")) as url:
        yield url


@pytest.fixture(scope="module")
def through(proxy: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxy, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 12_000:
        pytest.skip(f"this machine lets a process open {hard} files; 12,000 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 12_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def pinned(through: httpx.Client) -> str:
    """A link that names the very model and preprocessing, so that its answer does not change."""
    return f"{address(through, IMAGE)}&{pins(through)}"


def pins(client: httpx.Client, **headers: str) -> str:
    told = client.get("/v1/models/small", headers=headers).json()
    return "&".join(f"{name}={told[name]}" for name in ("version", "digest", "preprocessing_digest"))


def address(client: httpx.Client, image: bytes, **headers: str) -> str:
    kept = client.post("/v1/images", content=image, headers=headers).json()["id"]
    return f"/v1/images/{kept}/features?model=small&layers=stem/relu"


def test_a_second_identical_get_is_served_by_the_proxy(
    through: httpx.Client, client: httpx.Client, pinned: str
) -> None:
    answers = [through.get(pinned) for _ in range(2)]
    assert [answer.headers["X-Cache"] for answer in answers] == ["MISS", "HIT"]
    assert answers[0].content == answers[1].content == client.get(pinned).content
    assert answers[1].headers["Cache-Control"] == answers[0].headers["Cache-Control"]


def test_a_client_that_holds_a_cached_answer_gets_no_bytes(through: httpx.Client, pinned: str) -> None:
    tag = through.get(f"{pinned}&channels=0").headers["ETag"]
    again = through.get(f"{pinned}&channels=0", headers={"If-None-Match": tag})
    assert (again.status_code, again.headers["X-Cache"], again.content) == (304, "HIT", b"")


def test_an_answer_that_may_change_is_asked_for_each_time(through: httpx.Client) -> None:
    url = address(through, IMAGE)
    first, second = through.get(url), through.get(url)
    assert "X-Cache" not in {**first.headers, **second.headers}
    assert through.get(url, headers={"If-None-Match": first.headers["ETag"]}).status_code == 304


def test_a_refusal_is_never_kept(through: httpx.Client, pinned: str) -> None:
    for _ in range(2):
        answer = through.get(f"{pinned}&layers=nothing")
        assert (answer.status_code, answer.headers["X-Cache"]) == (404, "MISS")


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/v1/../metrics"])
def test_the_numbers_are_not_passed_on(proxy: str, path: str) -> None:
    status, body = ask(proxy, f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
    assert status == 404
    assert b"the proxy does not pass this address on" in body


def test_a_body_over_the_limit_is_a_problem_document(through: httpx.Client) -> None:
    answer = through.post("/v1/images", content=bytes(33 * MIB), headers={"X-Request-Id": "mine"})
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")
    assert answer.json()["request_id"] == "mine"


def test_a_header_of_a_megabyte_is_refused_and_others_are_served(proxy: str, through: httpx.Client) -> None:
    status, body = ask(proxy, b"GET /livez HTTP/1.1\r\nHost: here\r\nA: " + b"a" * MIB + b"\r\n\r\n")
    assert (status, b"malformed-request" in body) == (400, True)
    assert through.get("/livez").status_code == 200


def test_a_chunked_body_without_end_is_cut_off_and_others_are_served(
    proxy: str, through: httpx.Client
) -> None:
    """What counts is that the client cannot go on sending; what it has sent meanwhile is dropped."""
    piece = b"100000\r\n" + bytes(MIB) + b"\r\n"
    with connect(proxy) as endless:
        endless.sendall(b"POST /v1/images HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent, is_cut_off, end = 0, False, time.monotonic() + CUT_OFF_WITHIN_S
        while not is_cut_off and time.monotonic() < end:
            try:
                endless.sendall(piece)
            except OSError:
                is_cut_off = True
            sent += 1
            if sent % 16 == 0:
                assert through.get("/livez").status_code == 200
    assert is_cut_off
    assert sent > 16


def test_a_client_that_sends_its_header_by_the_byte_is_cut_off(server: Server, tmp_path: Path) -> None:
    """Two hundred of them, as slowloris does; the time is shortened, the rest is as shipped."""
    with proxying(server.url, tmp_path, client_header_timeout="1s") as url, ExitStack() as open_ones:
        slow = [open_ones.enter_context(connect(url)) for _ in range(200)]
        end = time.monotonic() + 20
        cut = 0
        while cut < len(slow) and time.monotonic() < end:
            cut += sum(not drips(one) for one in slow if one.fileno() >= 0)
            assert httpx.get(f"{url}/livez", trust_env=False).status_code == 200
        assert cut == len(slow)


def test_connections_that_ask_nothing_keep_nobody_out(proxy: str, many_files: None) -> None:
    """More than the workers have places for: the idle ones are given up in favour of those who ask."""
    with ExitStack() as open_ones:
        for _ in range(10_000):
            open_ones.enter_context(connect(proxy))
        answers = [httpx.get(f"{proxy}/livez", trust_env=False).status_code for _ in range(20)]
    assert answers == [200] * 20


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/images/{'0' * 64}/features?model=small"])
def test_a_service_that_is_away_is_a_503_that_says_when_to_ask_again(tmp_path: Path, path: str) -> None:
    with proxying("http://127.0.0.1:1", tmp_path) as url:
        answer = httpx.get(url + path, trust_env=False)
    assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (
        503,
        "not-ready",
        "1",
    )


def test_a_cached_answer_is_given_to_its_own_caller_only(repository: Path, tmp_path: Path) -> None:
    """With keys on: without one nothing, with another's nothing, with one's own the cached answer."""
    with (
        serving("--models", str(repository), FEATUREMAPS_KEYS=f"{key('one')} {key('two')}") as server,
        proxying(server.url, tmp_path) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        one, two = ({"Authorization": f"Bearer {name}"} for name in ("one", "two"))
        link = f"{address(client, IMAGE, **one)}&{pins(client, **one)}"
        asked = [client.get(link, headers=headers) for headers in (one, one, two, {}, one)]
    told = [(answer.status_code, answer.headers.get("X-Cache")) for answer in asked]
    assert told == [(200, "MISS"), (200, "HIT"), (404, "MISS"), (401, None), (200, "HIT")]
    assert asked[3].json()["code"] == "unauthenticated"
    assert asked[0].headers["Cache-Control"].startswith("private")
    assert b"Bearer" not in b"".join(
        file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()
    )


def test_a_deleted_image_is_gone_from_the_proxy_a_while_later(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    with (
        proxying(server.url, tmp_path, proxy_cache_valid="200 1s") as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as asking,
    ):
        image = encoded(photograph(seed=12))
        link = f"{address(asking, image)}&{pins(client)}"
        assert [asking.get(link).headers["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
        until(lambda: asking.get(link).headers["X-Cache"] == "REVALIDATED")
        assert asking.delete(link.partition("/features")[0]).status_code == 204
        until(lambda: asking.get(link).status_code == 404)


def key(name: str) -> str:
    """As it is stored; the token is the name itself."""
    return f"{name}:infer:{hashlib.sha256(name.encode()).hexdigest()}"


def connect(url: str) -> socket.socket:
    return socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10)


def ask(url: str, request: bytes) -> tuple[int, bytes]:
    with connect(url) as connection:
        with suppress(OSError):
            connection.sendall(request)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass
    return int(answer.split(b" ", 2)[1]), answer


def drips(connection: socket.socket) -> bool:
    """Whether one more byte of a header can be sent; what is cut off is closed."""
    connection.setblocking(False)
    try:
        connection.send(b"G")
        if connection.recv(1) == b"":
            raise ConnectionResetError
    except BlockingIOError:
        return True
    except OSError:
        connection.close()
        return False
    return True
