"""Loading, unloading and uploading models over HTTP, and what becomes of hostile ones; over real sockets."""

import concurrent.futures
import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.web.keys import make_key
from tests.builders import encoded, photograph, put, small_cnn
from tests.engine import hostile
from tests.servers import Server, managed, serving

GOOD = small_cnn(1, 32, 32).SerializeToString()
IMAGE = encoded(photograph(40, 30), "PNG")
FEATURES = "/v1/models/small/features?layers=stem/relu&format=npy"
# They take the process that checks them to its end, each in another way.
VICIOUS = (hostile.shape_that_doubles, hostile.constant_that_unfolds, hostile.endless_loop)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    return folder


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[Server]:
    limits = ("--max-body-bytes", "100000", "--max-model-bytes", "1000000", "--check-seconds", "3")
    memory = ("--check-memory-bytes", str(512 << 20))
    with managed("--models", str(models), *limits, *memory) as server:
        yield server


@pytest.fixture(scope="module")
def admin(service: Server) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def left_over(models: Path) -> list[Path]:
    return list(models.glob(".upload-*"))


def test_an_uploaded_version_is_kept_and_served_once_it_is_loaded(
    admin: httpx.Client, service: Server, models: Path
) -> None:
    answer = admin.put("/v1/models/new/versions/3", content=GOOD)
    digest = hashlib.sha256(GOOD).hexdigest()
    told = {"model": "new", "version": "3", "digest": digest, "bytes": len(GOOD)}
    assert (answer.status_code, answer.json()) == (201, told)
    assert (models / "new/3/model.onnx").read_bytes() == GOOD
    assert admin.get("/v1/models/new").status_code == 404
    loaded = admin.post("/v1/models/new/load").json()
    assert (loaded["state"], loaded["default_version"]) == ("ready", "3")
    assert admin.get(answer.headers["Location"]).json()["digest"] == digest
    assert left_over(models) == []
    audited = [line for line in service.log if "featuremaps.audit" in line and digest in line]
    assert [action in line for action, line in zip(("upload", "load"), audited, strict=True)] == [True, True]


def test_a_version_that_is_there_is_never_overwritten(admin: httpx.Client, models: Path) -> None:
    before = (models / "small/1/model.onnx").read_bytes()
    assert problem(admin.put("/v1/models/small/versions/1", content=GOOD)) == (409, "version-exists")
    assert (models / "small/1/model.onnx").read_bytes() == before


def test_an_unloaded_model_serves_nothing_until_it_is_loaded(admin: httpx.Client) -> None:
    assert admin.post("/v1/models/small/unload").json()["state"] == "unloaded"
    assert problem(admin.post(FEATURES, content=IMAGE)) == (503, "not-ready")
    assert admin.post("/v1/models/small/load").json()["state"] == "ready"
    assert admin.post(FEATURES, content=IMAGE).status_code == 200


@pytest.mark.parametrize(
    ("url", "content", "status", "code"),
    [
        ("/v1/models/bad/versions/1", b"not ONNX", 422, "invalid-model"),
        ("/v1/models/bad/versions/1", b"", 400, "malformed-request"),
        ("/v1/models/bad/versions/1", GOOD[:-100], 422, "invalid-model"),
        ("/v1/models/bad/versions/1", bytes(1_000_001), 413, "body-too-large"),
        ("/v1/models/bad/versions/01", GOOD, 422, "invalid-parameter"),
        ("/v1/models/bad/versions/one", GOOD, 422, "invalid-parameter"),
        ("/v1/models/.bad/versions/1", GOOD, 422, "invalid-parameter"),
        ("/v1/models/..%2Fbad/versions/1", GOOD, 404, "not-found"),
    ],
)
def test_what_is_no_model_or_has_no_name_leaves_nothing_behind(
    admin: httpx.Client, models: Path, url: str, content: bytes, status: int, code: str
) -> None:
    assert problem(admin.put(url, content=content)) == (status, code)
    assert not (models / "bad").exists()
    assert left_over(models) == []


def test_a_model_may_be_larger_than_any_other_body(admin: httpx.Client, models: Path) -> None:
    """External data that is not there makes it fail, but only after all of it has arrived."""
    answer = admin.put("/v1/models/large/versions/1", content=GOOD + bytes(500_000))
    assert problem(answer) == (422, "invalid-model")
    assert problem(admin.post(FEATURES, content=bytes(500_000))) == (413, "body-too-large")


def test_a_client_that_leaves_while_it_uploads_leaves_nothing_behind(
    service: Server, admin: httpx.Client, models: Path
) -> None:
    def parts() -> Iterator[bytes]:
        yield GOOD[:1000]
        raise ConnectionAbortedError

    with contextlib.suppress(ConnectionAbortedError), service.client() as client:
        client.put("/v1/models/left/versions/1", content=parts())
    # Uploads go one at a time: that this one is taken tells that the other has ended.
    deadline = time.monotonic() + 60
    while (answer := admin.put("/v1/models/after/versions/1", content=GOOD)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
    assert answer.status_code == 201
    assert left_over(models) == []


def test_one_upload_at_a_time(service: Server, admin: httpx.Client, models: Path) -> None:
    begun, done = threading.Event(), threading.Event()

    def parts() -> Iterator[bytes]:
        yield GOOD[:1000]
        begun.set()
        assert done.wait(60)
        yield GOOD[1000:]

    with service.client() as other, concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(other.put, "/v1/models/first/versions/1", content=parts())
        assert begun.wait(60)
        while not left_over(models):
            assert not first.done()
        refusal = admin.put("/v1/models/second/versions/1", content=GOOD)
        done.set()
        assert first.result().status_code == 201
    assert problem(refusal) == (503, "overloaded")
    assert int(refusal.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("method", ["load", "unload"])
def test_nobody_changes_models_where_the_operator_does_not_allow_it(
    client: httpx.Client, repository: Path, method: str
) -> None:
    assert problem(client.post(f"/v1/models/small/{method}")) == (403, "forbidden")
    assert problem(client.put("/v1/models/small/versions/9", content=GOOD)) == (403, "forbidden")
    assert not (repository / "small/9").exists()


def test_a_key_for_inference_changes_no_models(models: Path) -> None:
    (user, user_line), (root, root_line) = make_key("ann", "infer"), make_key("root", "admin")
    lines = f"{user_line} {root_line}"
    with serving("--models", str(models), "--allow-admin", FEATUREMAPS_KEYS=lines) as server:
        with server.client() as client:
            url = "/v1/models/keyed/versions/1"
            assert problem(client.put(url, content=GOOD)) == (401, "unauthenticated")
            as_user = {"Authorization": f"Bearer {user}"}
            assert problem(client.put(url, content=GOOD, headers=as_user)) == (403, "forbidden")
            as_root = {"Authorization": f"Bearer {root}"}
            assert client.put(url, content=GOOD, headers=as_root).status_code == 201
        assert any("caller='root'" in line and "done" in line for line in server.log)


def test_a_repository_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A single file is none; a folder without rights stops nobody who is root, as tests may be."""
    file = put(tmp_path, "small", small_cnn(1, 32, 32))
    with managed("--models", str(file)) as server, server.client() as client:
        answer = client.put("/v1/models/new/versions/1", content=GOOD)
    assert problem(answer) == (503, "repository-not-writable")


def test_hostile_uploads_are_refused_while_others_are_served(
    service: Server, admin: httpx.Client, models: Path, tmp_path: Path
) -> None:
    before = psutil.Process(service.pid).memory_info().rss
    statuses = []
    with service.client() as other, concurrent.futures.ThreadPoolExecutor(1) as pool:
        for make in VICIOUS:
            make(tmp_path / "model.onnx")
            body = (tmp_path / "model.onnx").read_bytes()
            upload = pool.submit(other.put, "/v1/models/evil/versions/1", content=body)
            while not upload.done():
                statuses.append(admin.post(FEATURES, content=IMAGE).status_code)
            assert problem(upload.result()) == (422, "invalid-model"), make
    assert set(statuses) == {200}
    assert psutil.Process(service.pid).memory_info().rss - before < 100 << 20
    assert not (models / "evil").exists()
    assert left_over(models) == []


def test_hostile_files_that_were_dropped_fail_with_a_reason_while_others_are_served(tmp_path: Path) -> None:
    put(tmp_path, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    for make in VICIOUS:
        file = tmp_path / make.__name__ / "1" / "model.onnx"
        file.parent.mkdir(parents=True)
        make(file)
    limits = ("--check-seconds", "3", "--check-memory-bytes", str(512 << 20))
    with serving("--models", str(tmp_path), "--load", "lazy", *limits) as server, server.client() as client:
        before = psutil.Process(server.pid).memory_info().rss
        statuses = []
        with server.client() as other, concurrent.futures.ThreadPoolExecutor(1) as pool:
            for make in VICIOUS:
                ask = pool.submit(other.get, f"/v1/models/{make.__name__}")
                while not ask.done():
                    statuses.append(client.post(FEATURES, content=IMAGE).status_code)
                assert problem(ask.result()) == (503, "model-failed"), make
        assert set(statuses) == {200}
        assert psutil.Process(server.pid).memory_info().rss - before < 200 << 20
