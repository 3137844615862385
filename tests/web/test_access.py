"""Keys: who is let in, to what, and what each may see; over real sockets."""

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.app import guard_of
from service.errors import ConfigurationError
from service.settings import Settings
from service.web.keys import KeyRing, make_key
from tests.builders import encoded, photograph, put, small_cnn
from tests.conftest import ROOT
from tests.servers import serving

FEATURES = "/v1/models/small/features?layers=stem/relu&format=npy"
IMAGE = encoded(photograph(40, 30), "PNG")


@dataclass
class Ring:
    """A service with keys, its file of them, and the token of each caller."""

    client: httpx.Client
    file: Path
    tokens: dict[str, str]
    log: list[str]

    def ask(self, name: str, method: str, url: str, body: bytes | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[name]}"}
        return self.client.request(method, url, content=body, headers=headers)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    return folder


@pytest.fixture(scope="module")
def ring(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    made = {name: make_key(name, scope) for name, scope in (("ann", "infer"), ("bob", "infer"))}
    made["root"] = make_key("root", "admin")
    file.write_text("# those who may come in\n\n" + "".join(f"{line}\n" for _, line in made.values()))
    environ = {"FEATUREMAPS_KEYS_FILE": str(file), "FEATUREMAPS_ALLOW_ADMIN": "true"}
    with serving("--models", str(models), **environ) as server, server.client() as client:
        yield Ring(client, file, {name: token for name, (token, _) in made.items()}, server.log)


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/version"),
        ("GET", "/v1/access"),
        ("POST", FEATURES),
        ("POST", "/v1/images"),
        ("GET", f"/v1/images/{'0' * 64}"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/small/unload"),
        ("GET", "/nothing"),
        ("GET", "/v1/%2E%2E/livez"),
        ("GET", "/livez/"),
    ],
)
def test_without_a_key_nothing_is_told(ring: Ring, method: str, url: str) -> None:
    answer = ring.client.request(method, url, content=IMAGE if method == "POST" else None)
    assert problem(answer) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("url", ["/livez", "/readyz", "/openapi.json"])
def test_what_holds_no_data_needs_no_key(ring: Ring, url: str) -> None:
    assert ring.client.get(url).status_code == 200
    assert ring.client.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 200


@pytest.mark.parametrize("length", [1, 31, 32, 43, 64, 1000, 30_000])
def test_a_wrong_key_of_any_length_is_refused(ring: Ring, length: int) -> None:
    headers = {"Authorization": "Bearer " + "x" * length}
    assert problem(ring.client.get("/v1/models", headers=headers)) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "given",
    [
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer x{token}",
        "Bearer {stored}",
        "Bearer é",
    ],
)
def test_what_is_no_key_is_refused(ring: Ring, given: str) -> None:
    token = ring.tokens["ann"]
    stored = hashlib.sha256(token.encode()).hexdigest()
    sent = given.format(token=token, stored=stored).encode("latin-1")
    answer = ring.client.get("/v1/models", headers={b"Authorization": sent})
    assert problem(answer) == (401, "unauthenticated")
    assert token not in answer.text


@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER"])
def test_a_key_lets_in(ring: Ring, kind: str) -> None:
    headers = {"Authorization": f"{kind} {ring.tokens['ann']}"}
    assert ring.client.post(FEATURES, content=IMAGE, headers=headers).status_code == 200


def test_a_refused_client_that_sends_all_before_it_reads_reads_the_refusal(ring: Ring) -> None:
    assert problem(ring.client.post(FEATURES, content=bytes(20_000_000))) == (401, "unauthenticated")


def test_a_key_for_inference_changes_no_models_and_one_for_administration_infers_too(ring: Ring) -> None:
    refusal = ring.ask("ann", "POST", "/v2/repository/models/small/load")
    assert problem(refusal) == (403, "forbidden")
    assert ring.ask("root", "POST", "/v2/repository/models/small/load").status_code == 200
    assert ring.ask("root", "POST", FEATURES, IMAGE).status_code == 200


@pytest.mark.parametrize(
    ("name", "url", "status"),
    [
        ("ann", "/v1/access", 204),
        ("ann", "/v1/access?scope=infer", 204),
        ("ann", "/v1/access?scope=admin", 403),
        ("root", "/v1/access?scope=admin", 204),
        ("root", "/v1/access?scope=all", 422),
    ],
)
def test_a_proxy_asks_whether_a_caller_may(ring: Ring, name: str, url: str, status: int) -> None:
    answer = ring.ask(name, "GET", url)
    assert answer.status_code == status
    assert answer.headers["Cache-Control"] == "no-store"
    if status == 204:
        assert (answer.headers["Featuremaps-Caller"], answer.content) == (name, b"")


def test_an_image_belongs_to_its_key(ring: Ring) -> None:
    image = ring.ask("ann", "POST", "/v1/images", IMAGE).json()["id"]
    url = f"/v1/images/{image}"
    ways = [url, f"{url}/render?model=small&layer=stem/relu", f"{url}/features?model=small"]
    for way in ways:
        assert ring.ask("ann", "GET", way).status_code == 200
        assert problem(ring.ask("bob", "GET", way)) == (404, "image-not-found")
        assert problem(ring.ask("root", "GET", way)) == (404, "image-not-found")
    assert problem(ring.ask("bob", "DELETE", url)) == (404, "image-not-found")
    assert ring.ask("ann", "GET", url).content == IMAGE
    assert ring.ask("ann", "DELETE", url).status_code == 204


def test_another_keys_tag_does_not_tell_that_an_image_is_there(ring: Ring) -> None:
    image = ring.ask("ann", "POST", "/v1/images", IMAGE).json()["id"]
    url = f"/v1/images/{image}/statistics?model=small"
    tag = ring.ask("ann", "GET", url).headers["ETag"]
    headers = {"If-None-Match": tag, "Authorization": f"Bearer {ring.tokens['bob']}"}
    assert problem(ring.client.get(url, headers=headers)) == (404, "image-not-found")


def test_with_keys_on_nothing_is_for_shared_caches(ring: Ring) -> None:
    image = ring.ask("ann", "POST", "/v1/images", IMAGE).json()["id"]
    told = ring.ask("ann", "GET", "/v1/models/small").json()
    pins = "&".join(f"{name}={told[name]}" for name in ("version", "digest", "preprocessing_digest"))
    pinned = f"/v1/images/{image}/statistics?model=small&{pins}"
    for url in (f"/v1/images/{image}", pinned, "/v1/models/small/filters?layer=stem/conv"):
        answer = ring.ask("ann", "GET", url)
        assert answer.headers["Cache-Control"].split(", ")[0] == "private"
        assert "Authorization" in answer.headers["Vary"]
    assert "immutable" in ring.ask("ann", "GET", pinned).headers["Cache-Control"]


def test_keys_are_changed_while_the_service_runs(ring: Ring) -> None:
    """A caller has the old and the new key for a while; then the old one is taken away."""
    before = ring.file.read_text()
    token, line = make_key("carl", "infer")
    later, later_line = make_key("carl", "infer")
    ring.tokens |= {"carl": token, "carl later": later}
    ring.file.write_text(f"{before}{line}\n")
    until(lambda: ring.ask("carl", "GET", "/v1/models").status_code == 200)
    image = ring.ask("carl", "POST", "/v1/images", IMAGE).json()["id"]
    ring.file.write_text(f"{before}{line}\n{later_line}\n")
    until(lambda: ring.ask("carl later", "GET", "/v1/models").status_code == 200)
    assert ring.ask("carl", "GET", "/v1/models").status_code == 200
    ring.file.write_text(f"{before}{later_line}\n")
    until(lambda: ring.ask("carl", "GET", "/v1/models").status_code == 401)
    assert ring.ask("carl later", "GET", f"/v1/images/{image}").status_code == 200
    ring.file.write_text(before)


def test_a_file_of_keys_that_is_spoilt_changes_nothing(ring: Ring) -> None:
    before = ring.file.read_text()
    ring.file.write_text("not a key\n")
    answers = []

    def is_told() -> bool:
        answers.append(ring.ask("ann", "GET", "/v1/models").status_code)
        return any("stay as they were" in line for line in ring.log)

    until(is_told)
    assert set(answers) == {200}
    ring.file.write_text(before)


@pytest.mark.parametrize(
    "entry",
    [
        "ann",
        "ann:infer",
        "ann:infer:00",
        "ann:all:" + "0" * 64,
        ":infer:" + "0" * 64,
        "a b:infer:" + "0" * 64,
    ],
)
def test_an_ill_formed_key_stops_the_start(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ConfigurationError, match="featuremaps key"):
        KeyRing([entry])
    file = tmp_path / "keys"
    file.write_text(f"# nobody\n{entry}\n")
    with pytest.raises(ConfigurationError, match="featuremaps key"):
        KeyRing([], file)


def test_a_token_given_in_place_of_its_hash_is_not_repeated() -> None:
    token, _ = make_key("ann", "infer")
    with pytest.raises(ConfigurationError) as refusal:
        KeyRing([f"ann:infer:{token}"])
    assert token not in str(refusal.value)


def test_a_file_of_keys_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        KeyRing([], tmp_path / "absent")


def test_a_file_of_keys_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    """A pipe, so that it changes before the ring has read it to its end."""
    file, next_file = tmp_path / "keys", tmp_path / "next"
    os.mkfifo(file)
    (token, line), (later, later_line) = make_key("ann", "infer"), make_key("ann", "infer")
    next_file.write_text(later_line)

    def change() -> None:
        with file.open("w") as pipe:
            next_file.replace(file)
            pipe.write(line)

    changing = threading.Thread(target=change)
    changing.start()
    ring = KeyRing([], file)
    changing.join()
    assert ring.find(token) is not None
    until(lambda: ring.find(later) is not None)


def featuremaps(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FEATUREMAPS_")}
    command = [sys.executable, "-m", "service", *words]
    environment = {**clean, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


def test_the_command_makes_a_key_that_lets_in() -> None:
    done = featuremaps("key", "ann", "--scope", "admin")
    token = re.search(r"Bearer (\S+)", done.stderr)
    assert token is not None
    caller = KeyRing([done.stdout.strip()]).find(token[1])
    assert caller is not None
    assert (caller.name, caller.scopes) == ("ann", {"infer", "admin"})
    assert token[1] not in done.stdout


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_listening_where_others_can_connect_without_keys_is_refused(models: Path, host: str) -> None:
    done = featuremaps("serve", "--host", host, "--port", "0", "--models", str(models))
    assert done.returncode == 2
    assert "allow_anonymous" in done.stderr


def test_listening_where_others_can_connect_is_possible_with_a_key_or_when_it_is_said(models: Path) -> None:
    token, line = make_key("ann", "infer")
    given = ("--models", str(models), "--host", "0.0.0.0")
    with serving(*given, FEATUREMAPS_KEYS=f"{line} {make_key('bob', 'infer')[1]}") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/v1/models", headers=headers, trust_env=False).status_code == 200
    with serving(*given, "--allow-anonymous") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200


def test_without_keys_nobody_may_change_models() -> None:
    with pytest.raises(ConfigurationError, match="allow_admin needs keys"):
        guard_of(Settings(allow_admin=True))
