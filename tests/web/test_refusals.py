"""Every refusal is a problem document that says what was given, what is allowed and how to find out."""

import base64
import http.client
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from onnx import helper
from starlette.requests import Request

from service.errors import Overloaded
from service.web import problems
from tests.builders import encoded, model, photograph, put
from tests.servers import Server, serving

URL = "/v1/models/small/features"
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id", "error"}
IMAGE = {"Content-Type": "image/jpeg"}


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    assert body.keys() >= MEMBERS
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:featuremaps:problem:{body['code']}"
    assert body["error"] == body["detail"]
    assert body["request_id"] == answer.headers["X-Request-Id"]
    return body


@pytest.mark.parametrize(
    ("method", "url", "content", "headers", "status", "code"),
    [
        ("GET", "/nothing", b"", {}, 404, "not-found"),
        ("GET", URL, b"", {}, 405, "method-not-allowed"),
        ("DELETE", "/v1/models", b"", {}, 405, "method-not-allowed"),
        ("GET", "/v1/models/absent", b"", {}, 404, "model-not-found"),
        ("GET", "/v1/models/.hidden", b"", {}, 422, "invalid-parameter"),
        ("GET", "/v1/models/small?version=7", b"", {}, 404, "version-not-found"),
        ("GET", "/v1/models/small?version=one", b"", {}, 422, "invalid-parameter"),
        ("GET", "/v1/models/small?vresion=1", b"", {}, 422, "invalid-parameter"),
        ("GET", "/v1/models/broken", b"", {}, 503, "model-failed"),
        ("GET", "/v1/models/small/layers?layers=nothing", b"", {}, 404, "layer-not-found"),
        ("GET", "/v1/models/small/layers?size=0x3", b"", {}, 422, "invalid-parameter"),
        ("GET", "/v1/models/small/layers?size=9999x9999", b"", {}, 422, "invalid-parameter"),
        ("GET", "/v1/models/fixed/layers?size=64x64", b"", {}, 422, "invalid-parameter"),
        ("POST", URL, b"", IMAGE, 400, "malformed-request"),
        ("POST", URL, b"hello", IMAGE, 415, "unsupported-image-format"),
        ("POST", URL, b"hello", {"Content-Type": "text/plain"}, 415, "unsupported-media-type"),
        ("POST", URL, b"hello", {**IMAGE, "Content-Encoding": "gzip"}, 415, "unsupported-content-encoding"),
        ("POST", URL, b"{", {"Content-Type": "application/json"}, 400, "malformed-request"),
        ("POST", URL, b"[]", {"Content-Type": "application/json"}, 422, "invalid-parameter"),
        ("POST", URL, b'{"images": []}', {"Content-Type": "application/json"}, 422, "invalid-parameter"),
        ("POST", URL, b'{"images": ["?"]}', {"Content-Type": "application/json"}, 400, "malformed-request"),
        (
            "POST",
            URL,
            b'{"images": ["aaaa"], "dtype": 3}',
            {"Content-Type": "application/json"},
            422,
            "invalid-parameter",
        ),
        (
            "POST",
            URL,
            b'{"images": ["aaaa"], "size": []}',
            {"Content-Type": "application/json"},
            422,
            "invalid-parameter",
        ),
        (
            "POST",
            URL,
            b'{"images": ["aaaa"], "x": 1}',
            {"Content-Type": "application/json"},
            422,
            "invalid-parameter",
        ),
        ("POST", URL, b"x", {"Content-Type": "multipart/form-data"}, 400, "malformed-request"),
        ("POST", URL, b"x", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "malformed-request"),
        ("POST", URL, b"x", {"Content-Type": "application/x-npy"}, 400, "malformed-request"),
    ],
)
def test_bad_input_is_refused(
    client: httpx.Client,
    method: str,
    url: str,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    body = problem(client.request(method, url, content=content, headers=headers))
    assert (body["status"], body["code"]) == (status, code)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"layers": "stem/rellu"}, 404, "layer-not-found"),
        ({"layers": ""}, 422, "invalid-parameter"),
        ({"dtype": "float8"}, 422, "invalid-parameter"),
        ({"format": "hdf5"}, 422, "invalid-parameter"),
        ({"format": "npy", "layers": "all"}, 422, "not-combinable"),
        ({"format": "npy", "compress": "deflate", "layers": "logits"}, 422, "not-combinable"),
        ({"timeout_s": "0"}, 422, "invalid-parameter"),
        ({"timeout_s": "nan"}, 422, "invalid-parameter"),
        ({"timeout_s": "0.000001"}, 504, "deadline-exceeded"),
        ({"size": "32"}, 422, "invalid-parameter"),
    ],
)
def test_a_bad_parameter_is_refused(
    client: httpx.Client, jpeg: bytes, query: dict[str, str], status: int, code: str
) -> None:
    body = problem(client.post(URL, params=query, content=jpeg, headers=IMAGE))
    assert (body["status"], body["code"]) == (status, code)


def test_an_unknown_layer_is_answered_with_the_nearest(client: httpx.Client, jpeg: bytes) -> None:
    body = problem(client.post(URL, params={"layers": "stem/rellu"}, content=jpeg, headers=IMAGE))
    assert body["suggestions"][0] == "stem/relu"


def test_accept_that_nothing_satisfies_is_a_406(client: httpx.Client, jpeg: bytes) -> None:
    body = problem(client.post(URL, content=jpeg, headers={**IMAGE, "Accept": "text/html"}))
    assert (body["status"], body["code"]) == (406, "not-acceptable")


def test_one_bad_image_refuses_the_request_and_is_named(client: httpx.Client, jpeg: bytes) -> None:
    files = [("image", jpeg), ("image", jpeg[: len(jpeg) // 2])]
    body = problem(client.post(URL, files=files))
    assert (body["status"], body["code"], body["index"]) == (422, "image-not-decodable", 1)


def test_a_part_of_another_name_is_refused(client: httpx.Client, jpeg: bytes) -> None:
    assert problem(client.post(URL, files=[("picture", jpeg)]))["code"] == "invalid-parameter"


def test_too_many_images_are_refused(client: httpx.Client) -> None:
    tiny = encoded(photograph(8, 8), "PNG")
    assert problem(client.post(URL, files=[("image", tiny)] * 17))["code"] == "too-many-images"


@pytest.mark.parametrize("count", [16, 17])
def test_the_limit_of_images_counts_a_tensors_too(client: httpx.Client, count: int) -> None:
    import numpy as np

    from tests.builders import npy

    body = npy(np.zeros((count, 3, 8, 8), np.float32))
    answer = client.post(URL, content=body, headers={"Content-Type": "application/x-npy"})
    assert answer.status_code == (200 if count == 16 else 413)


def test_a_body_over_the_limit_is_refused_by_its_announced_length(server: Server) -> None:
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99999999\r\n\r\n"
    assert b"body-too-large" in raw(server, head.encode())


def test_a_body_over_the_limit_is_refused_while_it_arrives(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        # As much as is taken and a little more; what comes after the refusal is nobody's.
        for _ in range(33):
            connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["code"]) == (413, "body-too-large")


def raw(server: Server, request: bytes) -> bytes:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b"}"):
            if not (more := connection.recv(65536)):
                break
            answer += more
        return answer


def test_a_well_formed_request_id_is_repeated_and_another_is_replaced(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert client.get("/livez", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"


def test_head_answers_as_get_without_a_body(client: httpx.Client) -> None:
    head, get = client.head("/v1/models"), client.get("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(get.content))


def test_a_refusal_tells_nothing_of_the_machine(client: httpx.Client, repository: Any) -> None:
    for url in ("/v1/models", "/v1/models/broken", "/v1/models/versions?version=2"):
        text = client.get(url).text
        assert str(repository) not in text
        assert "0x" not in text
        assert "Traceback" not in text


def test_a_problem_is_declared_for_every_operation(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert "Problem" in document["components"]["schemas"]
    assert json.dumps(document).count("#/components/schemas/Problem") > 5


def header(shape: str) -> bytes:
    """An `.npy` head of version 1.0 whatever the shape says."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "shape", ["(0,1000000000000000000000000000000)", "(True,3,32,32)", "(-1,3,32,32)", "(1e9,)"]
)
def test_an_odd_npy_header_is_refused(client: httpx.Client, shape: str) -> None:
    body = header(shape) + bytes(4 * 3 * 32 * 32)
    answer = client.post(URL, content=body, headers={"Content-Type": "application/x-npy"})
    assert problem(answer)["status"] in (400, 422)


@pytest.mark.parametrize("url", ["/v1/models/", "/v1/images/"])
def test_a_slash_too_many_is_not_redirected_to_where_the_client_says(client: httpx.Client, url: str) -> None:
    assert problem(client.get(url, headers={"Host": "evil.example"}))["code"] in (
        "not-found",
        "method-not-allowed",
    )


def test_the_methods_of_all_routes_of_an_address_are_allowed(client: httpx.Client) -> None:
    answer = client.put("/v1/images/" + "0" * 64)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD")


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/v1/models?x=1"),
        ("POST", "/v1/images?x=1"),
        ("GET", "/v1/images/" + "0" * 64 + "?x=1"),
        ("POST", URL + "?format=npy&format=npz"),
        ("GET", "/v1/models/small/layers?size=8x8&size=9x9"),
    ],
)
def test_an_unknown_or_repeated_parameter_is_refused(
    client: httpx.Client, jpeg: bytes, method: str, url: str
) -> None:
    assert problem(client.request(method, url, content=jpeg))["code"] == "invalid-parameter"


@pytest.mark.parametrize("body", [{"timeout_s": True}, {"layers": [1]}, {"size": 32}, {"dtype": True}])
def test_a_json_value_of_a_wrong_type_is_refused(
    client: httpx.Client, jpeg: bytes, body: dict[str, Any]
) -> None:
    image = base64.b64encode(jpeg).decode()
    assert problem(client.post(URL, json={"images": [image], **body}))["code"] == "invalid-parameter"


def test_a_picture_takes_its_layer_from_the_body_too(client: httpx.Client, jpeg: bytes) -> None:
    body = {"images": [base64.b64encode(jpeg).decode()]}
    url = "/v1/models/small/render"
    assert client.post(url, json={**body, "layer": "stem/relu"}).status_code == 200
    assert problem(client.post(url, json=body))["code"] == "invalid-parameter"


@pytest.mark.parametrize(("commas", "code"), [(9_000, "invalid-parameter"), (1_000_000, "malformed-request")])
def test_commas_without_end_are_refused_at_once(
    client: httpx.Client, jpeg: bytes, commas: int, code: str
) -> None:
    body = {"images": [base64.b64encode(jpeg).decode()], "layers": "," * commas}
    answer = client.post(URL, json=body)
    assert problem(answer)["code"] == code
    assert answer.elapsed.total_seconds() < 2


@pytest.mark.parametrize(
    "query", [{"grid": "8000x8000", "dtype": "uint8", "channels": "0", "layers": "stem/relu"}]
)
def test_a_reduction_that_would_hold_too_much_is_refused(
    client: httpx.Client, jpeg: bytes, query: dict[str, str]
) -> None:
    assert problem(client.post(URL, params=query, content=jpeg))["code"] == "answer-too-large"


@pytest.mark.parametrize(("names", "says"), [(100, "no parameter 'a0'"), (101, "more than 100 parameters")])
def test_parameters_without_end_are_not_looked_at_one_by_one(
    client: httpx.Client, names: int, says: str
) -> None:
    answer = client.get("/v1/models/small/layers", params={f"a{i}": "" for i in range(names)})
    refusal = problem(answer)
    assert (refusal["status"], refusal["code"]) == (422, "invalid-parameter")
    assert says in refusal["detail"]


def test_a_layer_that_is_called_as_what_stands_beside_another_is_asked_for_apart(
    tmp_path: Path, jpeg: bytes
) -> None:
    nodes = [helper.make_node("Neg", ["image"], ["a"]), helper.make_node("Abs", ["a"], ["a#scale"])]
    put(tmp_path, "odd", model(nodes, {"image": [1, 3, 8, 8]}, ["a#scale"]))
    codes, details = {}, []
    with serving("--models", str(tmp_path)) as server, server.client() as client:
        for layers, dtype in (("all", "native"), ("all", "uint8"), ("a", "uint8"), ("a#scale", "uint8")):
            query = {"layers": layers, "dtype": dtype}
            answer = client.post("/v1/models/odd/features", params=query, content=jpeg)
            codes[layers, dtype] = answer.status_code
            if answer.status_code != 200:
                details.append(problem(answer)["detail"])
            outputs = [{"name": n, "parameters": {"dtype": dtype}} for n in ("a", "a#scale")]
            inputs = [{"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [1.0] * 192}]
            asked = {"inputs": inputs, "outputs": [o for o in outputs if layers in ("all", o["name"])]}
            assert client.post("/v2/models/odd/infer", json=asked).status_code == answer.status_code
    assert codes == {
        ("all", "native"): 200,
        ("all", "uint8"): 422,
        ("a", "uint8"): 200,
        ("a#scale", "uint8"): 200,
    }
    assert details == ["two arrays would be called 'a#scale': ask for these layers one by one"]


def test_a_drawing_that_would_hold_too_much_is_refused_with_what_to_ask_for(
    repository: Path, jpeg: bytes
) -> None:
    """8192 values of 4 bytes: as float64 and with masks they are more than as they are."""
    query = {"layer": "stem/relu", "size": "64x64"}
    with (
        serving("--models", str(repository), FEATUREMAPS_MAX_MAP_BYTES="100000") as server,
        server.client() as client,
    ):
        answers = {
            style: client.post("/v1/models/small/render", params={**query, "style": style}, content=jpeg)
            for style in ("heatmap", "eigencam")
        }
    assert answers["heatmap"].status_code == 200
    refusal = problem(answers["eigencam"])
    assert (refusal["status"], refusal["code"], refusal["limit"]) == (413, "answer-too-large", 100000)
    assert "ask for style=heatmap" in refusal["detail"]


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"images": ["AAAA"], **{str(number): 1 for number in range(100_000)}}),
        json.dumps({"images": ["AAAA"], "k" * 4_000_000: 1}),
        json.dumps({"images": [[]] * 1_000_000}),
        json.dumps({"images": ["AAAA"], "layers": [1] * 100_000}),
    ],
    ids=["many keys", "a long key", "a million lists", "many wrong layers"],
)
def test_json_takes_no_more_than_a_few_times_its_length(
    server: Server, client: httpx.Client, body: str
) -> None:
    found: list[httpx.Response] = []

    def ask() -> None:
        found.append(client.post(URL, content=body, headers={"Content-Type": "application/json"}))

    assert server.peak_bytes(ask) < (48 << 20) + 4 * len(body)
    assert found[0].status_code in (400, 422)
    assert len(found[0].content) < 2000


def test_a_client_that_leaves_while_sending_is_no_bug_of_ours(server: Server, client: httpx.Client) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode() + bytes(500))
    assert client.get("/livez").status_code == 200
    assert "a bug of ours" not in "".join(server.log)


def test_what_stands_in_front_of_the_service_refuses_in_the_same_words() -> None:
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "query_string": b"", "headers": []}
    answer = problems.problem(Request(scope), Overloaded("every replica is busy", retry_after_s=1))
    body = json.loads(bytes(answer.body))
    assert (answer.status_code, answer.headers["Retry-After"], body["code"]) == (503, "1", "overloaded")
    assert body.keys() >= MEMBERS
