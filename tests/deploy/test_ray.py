"""The service on Ray Serve. Ray listens on every interface: here loopback is the only one."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from service.web.keys import make_key
from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.servers import serving

pytestmark = pytest.mark.slow
PROGRAM = ROOT / ".venv-ray/bin/python"
ALONE = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')


def afternoon(folder: Path, what: str, **environ: str) -> tuple[dict[str, Any], str]:
    """What `ray_afternoon.py` tells, and Ray's own words."""
    if not PROGRAM.exists():
        pytest.skip("no .venv-ray: make check-deploy installs Ray")
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("no network of its own can be had here (unshare, ip)")
    (folder / "picture.jpg").write_bytes(encoded(photograph(), "JPEG"))
    done = subprocess.run(
        [*ALONE, str(PROGRAM), str(ROOT / "tests/deploy/ray_afternoon.py"), str(folder), what],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("FEATUREMAPS_")},
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(ROOT),
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    words = done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert told, words
    return json.loads(told[0].removeprefix("TOLD ")), words


def test_a_replica_that_is_killed_under_load_gives_its_clients_a_500() -> None:
    # Not under pytest's own folder, whose name is too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        told, words = afternoon(Path(folder), "kill")
    # No connection broke, and no answer was empty or cut off.
    assert told["statuses"].keys() <= {"200", "500", "503"}
    assert told["statuses"]["200"] > 20
    # Eight clients, of which each lost one request at most.
    assert sum(count for status, count in told["statuses"].items() if status != "200") <= 8
    assert told["slowest_failure_s"] < 10
    # It had work when it was killed, and another one has taken its place.
    assert "will not be considered for future requests because it has died" in words
    assert len(told["before"]) == len(told["after"]) == 2
    assert told["before"][0] not in told["after"]


def test_a_request_whose_replica_dies_is_not_repeated() -> None:
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        told, _ = afternoon(Path(folder), "lose")
    assert told["status"] == 500
    assert told["seconds"] < 10
    # The replica that took its place has answered one request for features: the one that came afterwards.
    assert told["later"] == 200
    counts = re.findall(r'^featuremaps_requests_total\{.*/features".*\} (.*)$', told["metrics"], re.MULTILINE)
    assert [float(count) for count in counts] == [1.0]


def test_what_is_too_much_is_refused_with_retry_after() -> None:
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        told, _ = afternoon(Path(folder), "refuse")
    assert {(status, retry_after) for status, retry_after in told["crowd"]} == {(200, None), (503, "1")}


def test_rays_proxy_limits_neither_heads_nor_bodies() -> None:
    """The service itself answers 431 and 408, and holds `max_body_bytes` of a body at most."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        told, _ = afternoon(Path(folder), "limits")
    assert (told["large"], told["slow"]) == ("HTTP/1.1 200 OK", "waits")
    assert told["body"] == 413
    # Of the 300 MB that were sent.
    assert told["held_mb"] > 200


FEATURES = "/v1/models/cifar-resnet/features"
PLAIN = {"Accept": "*/*", "Accept-Encoding": "identity", "X-Request-Id": "comparison"}
KEY = {"Authorization": "Bearer {token}"}
# Method, path, headers, pictures in the body.
REQUESTS: list[tuple[str, str, dict[str, str], int]] = [
    ("GET", "/", {}, 0),
    ("GET", "/static/takeaway.js", {}, 0),
    ("GET", "/readyz", {}, 0),
    ("GET", "/openapi.json", {}, 0),
    ("GET", "/v1/models", KEY, 0),
    ("HEAD", "/v1/models", KEY, 0),
    ("GET", "/v1/models", {}, 0),
    ("GET", "/v1/absent", KEY, 0),
    ("DELETE", "/v1/models", KEY, 0),
    ("GET", "/v2/models/cifar-resnet", KEY, 0),
    ("OPTIONS", FEATURES, {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}, 0),
    ("POST", f"{FEATURES}?layers=stages", {**KEY, "Origin": "https://a.example"}, 1),
    ("POST", f"{FEATURES}?layers=stages&format=safetensors", {**KEY, "Accept-Encoding": "gzip"}, 1),
    ("POST", f"{FEATURES}?layers=absent", KEY, 1),
    ("POST", FEATURES, KEY, 0),
    ("POST", FEATURES, KEY, 100),
    ("POST", FEATURES, {}, 100),
    ("GET", f"/v1/images/{'0' * 64}", KEY, 0),
    ("PUT", "/v1/models/more/versions/1", KEY, 1),
]
VARYING = {"date", "server-timing", "connection", "server", "transfer-encoding"}


def test_answers_are_those_of_serve() -> None:
    token, line = make_key("tests", "infer")
    environ: dict[str, Any] = {"FEATUREMAPS_KEYS": line, "FEATUREMAPS_MAX_BODY_BYTES": "100000"}
    environ |= {"FEATUREMAPS_CORS_ORIGINS": "https://a.example", "FEATUREMAPS_GRAPH_OPTIMIZATION": "off"}
    requests: list[dict[str, Any]] = [
        {
            "method": method,
            "path": path,
            "headers": {name: value.format(token=token) for name, value in (PLAIN | headers).items()},
            "pictures": pictures,
        }
        for method, path, headers, pictures in REQUESTS
    ]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        Path(folder, "requests.json").write_text(json.dumps(requests))
        told, _ = afternoon(Path(folder), "ask", **environ)
    picture = encoded(photograph(), "JPEG")
    with serving("--threads", "1", **environ) as server, server.client() as client:
        for each, found in zip(requests, told["answers"], strict=True):
            content = picture * each["pictures"] or None
            with client.stream(
                each["method"], each["path"], headers=each["headers"], content=content
            ) as ours:
                digest = hashlib.sha256(b"".join(ours.iter_raw())).hexdigest()
            assert found["status"] == ours.status_code, each
            assert steady(found["headers"]) == steady(ours.headers.multi_items()), each
            assert found["sha256"] == digest, each


def steady(headers: list[tuple[str, str]]) -> list[list[str]]:
    """The headers that do not differ from answer to answer."""
    return sorted([name.lower(), value] for name, value in headers if name.lower() not in VARYING)
