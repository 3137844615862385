"""The protocol's bytes: labels, header lengths, codings, hostile bodies; over HTTP and raw sockets."""

import gzip
import http.client
import json
import socket
import time
import zlib
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.builders import put
from tests.servers import Server, serving
from tests.v2.conftest import LABELS, heavy
from tests.v2.points import point

INFER = "/v2/models/small/infer"
LENGTH = "Inference-Header-Content-Length"
IMAGE = np.random.default_rng(2).normal(size=(1, 3, 32, 32)).astype(np.float32)
# What a hostile body of some megabytes may leave behind at most: allocators keep a little.
FLAT_BYTES = 48 << 20


def asked(
    data: Any = None,
    *,
    size: int | None = None,
    shape: Any = IMAGE.shape,
    datatype: str = "FP32",
    **more: Any,
) -> bytes:
    given: dict[str, Any] = {"name": "image", "shape": shape, "datatype": datatype}
    if data is not None:
        given["data"] = data
    if size is not None:
        given["parameters"] = {"binary_data_size": size}
    outputs = [{"name": "pool", "parameters": {"binary_data": False}}]
    return json.dumps({"inputs": [given], "outputs": outputs, **more}).encode()


def with_bytes(head: bytes, values: bytes = IMAGE.tobytes()) -> tuple[bytes, dict[str, str]]:
    return head + values, {LENGTH: str(len(head))}


HEAD = asked(size=IMAGE.nbytes)
BODY, LABELLED = with_bytes(HEAD)


def pool(http: httpx.Client, body: bytes, **headers: str) -> list[float]:
    answer = http.post(INFER, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[float] = answer.json()["outputs"][0]["data"]
    return found


@pytest.fixture(scope="module")
def expected(http: httpx.Client) -> list[float]:
    return pool(http, asked(IMAGE.tolist()))


@point(1, 2, 3)
@pytest.mark.parametrize(
    "label", [None, "application/octet-stream", "application/json", "text/plain; charset=x"]
)
def test_the_label_of_a_body_does_not_matter(
    http: httpx.Client, expected: list[float], label: str | None
) -> None:
    labels = {} if label is None else {"Content-Type": label}
    assert pool(http, asked(IMAGE.reshape(-1).tolist()), **labels) == expected
    assert pool(http, BODY, **LABELLED, **labels) == expected


@point(11)
@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
def test_the_header_length_is_that_of_the_uncompressed_body(
    http: httpx.Client, expected: list[float], coding: str, pack: Any
) -> None:
    assert pool(http, pack(BODY), **LABELLED, **{"Content-Encoding": coding}) == expected


@point(11)
@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, deflate", "x"])
def test_another_coding_of_a_body_is_told_which_are_taken(http: httpx.Client, coding: str) -> None:
    refusal = http.post(INFER, content=BODY, headers={**LABELLED, "Content-Encoding": coding})
    assert (refusal.status_code, refusal.json()["code"]) == (415, "unsupported-content-encoding")
    assert refusal.headers["Accept-Encoding"] == "identity, gzip, deflate"


@point(11)
@pytest.mark.parametrize(
    "body", [b"", b"x", gzip.compress(BODY)[:-9], gzip.compress(BODY) + b"x", zlib.compress(BODY)[3:]]
)
def test_a_damaged_compressed_body_is_refused(http: httpx.Client, body: bytes) -> None:
    refusal = http.post(INFER, content=body, headers={**LABELLED, "Content-Encoding": "gzip"})
    assert (refusal.status_code, refusal.json()["code"]) == (400, "malformed-request")


@point(12)
@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.1, deflate;q=0.9", "deflate"),
        ("gzip, deflate", "gzip"),
        ("br, zstd", None),
        ("zstd, br, gzip;q=0", None),
        ("gzip;q=0, deflate;q=0.5, zstd", "deflate"),
        ("*", "gzip"),
        ("identity", None),
        ("", None),
    ],
)
def test_answers_have_the_best_coding_that_clients_of_the_protocol_undo(
    http: httpx.Client, accepted: str, coding: str | None
) -> None:
    zeros = asked(np.zeros(IMAGE.shape).tolist(), outputs=[{"name": "stem/conv"}])
    answer = http.post(INFER, content=zeros, headers={"Accept-Encoding": accepted})
    assert answer.headers.get("Content-Encoding") == coding
    assert answer.json()["outputs"][0]["shape"] == [1, 8, 16, 16]


LENGTHS = ["-1", "abc", "1.5", "", "+5", "0x10", "1e3", str(len(BODY) + 1), str(2**63), "9" * 4000, "²"]


@point(13)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_header_length_that_is_none_is_refused(http: httpx.Client, length: str) -> None:
    refusal = http.post(INFER, content=BODY, headers=[(LENGTH.encode(), length.encode())])
    assert (refusal.status_code, refusal.json()["code"]) == (400, "malformed-request")
    assert "inference header size" in refusal.json()["error"]


@point(13)
def test_bytes_without_a_header_length_and_two_lengths_are_refused(http: httpx.Client) -> None:
    assert http.post(INFER, content=BODY).json()["code"] == "malformed-request"
    assert "Inference-Header-Content-Length" in http.post(INFER, content=HEAD).json()["error"]
    twice = [(LENGTH, str(len(HEAD))), (LENGTH, str(len(HEAD)))]
    assert http.post(INFER, content=BODY, headers=twice).status_code == 400


@point(13)
def test_the_raw_request_is_the_one_input_and_answers_in_bytes(http: httpx.Client) -> None:
    answer = http.post(INFER, content=IMAGE.tobytes(), headers={LENGTH: "0"})
    length = int(answer.headers[LENGTH])
    (output,) = json.loads(answer.content[:length])["outputs"]
    logits = np.frombuffer(answer.content[length:], np.float32)
    named = http.post(INFER, content=asked(IMAGE.tolist(), outputs=[{"name": "logits"}]))
    assert (output["name"], output["parameters"]) == ("logits", {"binary_data_size": 20})
    assert logits.tolist() == np.float32(named.json()["outputs"][0]["data"]).tolist()
    for wrong in (IMAGE.tobytes()[:-1], IMAGE.tobytes() + b"x", b""):
        assert http.post(INFER, content=wrong, headers={LENGTH: "0"}).status_code == 400
    several = http.post("/v2/models/bare/infer", content=IMAGE.tobytes(), headers={LENGTH: "0"})
    assert "one input" in several.json()["error"]


def test_a_single_input_may_leave_its_size_out(http: httpx.Client, expected: list[float]) -> None:
    body, labelled = with_bytes(asked())
    assert pool(http, body, **labelled) == expected


def test_spaces_may_follow_the_json_so_that_the_bytes_are_aligned(
    http: httpx.Client, expected: list[float]
) -> None:
    body, labelled = with_bytes(HEAD + b" " * (64 - len(HEAD) % 64))
    assert pool(http, body, **labelled) == expected


@point(14)
@pytest.mark.parametrize("extra", [-1, 1, -IMAGE.nbytes])
def test_too_few_and_too_many_bytes_are_refused(http: httpx.Client, extra: int) -> None:
    values = (IMAGE.tobytes() + b"x")[: IMAGE.nbytes + extra]
    body, labelled = with_bytes(HEAD, values)
    refusal = http.post(INFER, content=body, headers=labelled)
    assert refusal.status_code == 400
    assert "unexpected" in refusal.json()["error"]


@point(15)
@pytest.mark.parametrize(
    "given",
    [
        {"data": IMAGE.tolist(), "parameters": {"binary_data_size": IMAGE.nbytes}},
        {"data": IMAGE.tolist(), "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}},
        {"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}},
        {"parameters": {"binary_data_size": "12"}},
        {"parameters": {"binary_data_size": -12}},
        {"parameters": {"binary_data_size": True}},
        {"data": None},
        {"data": "text"},
        {"data": {"0": 1}},
        {},
    ],
)
def test_an_input_has_its_values_in_one_place(http: httpx.Client, given: dict[str, Any]) -> None:
    whole = {"name": "image", "shape": IMAGE.shape, "datatype": "FP32", **given}
    head = json.dumps({"inputs": [whole]}).encode()
    refusal = http.post(INFER, content=head)
    assert (refusal.status_code, refusal.json()["code"]) == (400, "malformed-request")


SMALL = [0.0] * 12
MALFORMED: dict[str, tuple[bytes, dict[str, str]]] = {
    "fewer values than the shape": (asked(SMALL, shape=[1, 3, 2, 3]), {}),
    "more values than the shape": (asked(SMALL, shape=[1, 3, 2, 1]), {}),
    "a negative side": (asked(SMALL, shape=[1, 3, -2, -2]), {}),
    "a shape that overflows 64 bits": (asked(SMALL, shape=[2**32, 2**32, 3, 4]), {}),
    "a shape of 2^63": (asked(SMALL, shape=[2**63, 1, 1, 1]), {}),
    "a shape beyond 2^64": (asked(SMALL, shape=[2**70]), {}),
    "a shape that overflows to nothing": (asked([], shape=[0, 2**62, 2**62, 4]), {}),
    "a shape of halves": (asked(SMALL, shape=[1, 3, 2.5, 2]), {}),
    "a shape of truths": (asked(SMALL, shape=[True, 3, 2, 2]), {}),
    "a thousand axes": (asked(SMALL, shape=[1] * 1000), {}),
    "bytes of a shape that overflows": with_bytes(asked(size=IMAGE.nbytes, shape=[2**62, 4, 2, 2])),
    "lists 101 deep": (
        b'{"inputs":[{"name":"image","shape":[1],"datatype":"FP32","data":'
        + b"[" * 101
        + b"1"
        + b"]" * 101
        + b"}]}",
        {},
    ),
    "lists 10,000 deep": (b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}", {}),
    "data 5,000,000 deep": (
        b'{"inputs":[{"name":"image","shape":[1],"datatype":"FP32","data":'
        + b"[" * 5_000_000
        + b"]" * 5_000_000
        + b"}]}",
        {},
    ),
    "lists that never close": (b'{"inputs":[{"name":"image","data":' + b"[" * 5_000_000, {}),
    "texts 101 deep": (
        b'{"inputs":[{"name":"image","shape":[1],"datatype":"BYTES","data":'
        + b"[" * 101
        + b'"a"'
        + b"]" * 101
        + b"}]}",
        {},
    ),
    "a number of a million digits": (asked(SMALL).replace(b"0.0", b"1" * 1_000_000, 1), {}),
    "a number beyond every float": (asked(SMALL, shape=[1, 3, 2, 2]).replace(b"0.0", b"1e999", 1), {}),
    "a number beyond float32": (asked([1e300, *SMALL[1:]], shape=[1, 3, 2, 2]), {}),
    "a number beyond int8": (asked([128], shape=[1], datatype="INT8"), {}),
    "a half as a whole number": (asked([1.5], shape=[1], datatype="INT8"), {}),
    "a truth as a number": (asked([True], shape=[1]), {}),
    "a text as a number": (asked(["1"], shape=[1]), {}),
    "null as a number": (asked([None], shape=[1]), {}),
    "a comma too many": (asked(SMALL, shape=[1, 3, 2, 2]).replace(b"0.0]", b"0.0,]", 1), {}),
    "two lists": (asked(SMALL, shape=[1, 3, 2, 2]).replace(b"0.0]", b"0.0],[1]", 1), {}),
    "numbers without commas": (asked(SMALL, shape=[1, 3, 2, 2]).replace(b"0.0,", b"0.0 ", 1), {}),
    "half floats as numbers": (asked(SMALL, shape=[1, 3, 2, 2], datatype="FP16"), {}),
    "another datatype": (asked([0] * 12, shape=[1, 3, 2, 2], datatype="INT32"), {}),
    "another rank": (asked(SMALL, shape=[1, 12]), {}),
    "an unknown datatype": (asked(SMALL, shape=[1, 3, 2, 2], datatype="FP8"), {}),
    "an unknown input": (asked(SMALL, shape=[1, 3, 2, 2]).replace(b'"image"', b'"picture"'), {}),
    "an input twice": (
        asked(SMALL, shape=[1, 3, 2, 2]).replace(
            b'"inputs": [', b'"inputs": [{"name":"image","shape":[1],"datatype":"FP32","data":[1]},'
        ),
        {},
    ),
    "an output twice": (asked(SMALL, shape=[1, 3, 2, 2], outputs=[{"name": "pool"}] * 2), {}),
    "no inputs": (b'{"inputs":[]}', {}),
    "no object": (b"[]", {}),
    "nothing": (b"", {}),
    "no text": (b"\xff\xfe", {}),
    "a million empty inputs": (b'{"inputs":[' + b"{}," * 4_000_000 + b"{}]}", {}),
    "a million keys called data": (b'{"inputs":[{' + b'"data":[,' * 1_000_000 + b"}]}", {}),
    "an image that is none": (asked(["not an image"], shape=[1], datatype="BYTES"), {}),
    "texts longer than the body": with_bytes(asked(size=8, shape=[1], datatype="BYTES"), b"\xff" * 8),
    "texts without number": with_bytes(
        asked(size=4 << 20, shape=[1 << 20], datatype="BYTES"), bytes(4 << 20)
    ),
    "a gzip bomb": (gzip.compress(bytes(200 << 20)), {"Content-Encoding": "gzip"}),
    "a deflate bomb": (zlib.compress(bytes(200 << 20)), {"Content-Encoding": "deflate"}),
    **{
        f"{count} parameters": (
            asked(SMALL, shape=[1, 3, 2, 2], parameters={str(number): None for number in range(count)}),
            {},
        )
        for count in (60_000, 100_000)
    },
    "parameters of many inputs": (
        json.dumps({"inputs": [{"parameters": {str(n): None for n in range(60)}}] * 1000}).encode(),
        {},
    ),
    "a shape of nulls": (asked(SMALL, shape=[None] * 60_000), {}),
    "empty lists as data": (asked([[]] * 500_000), {}),
    "a name of a megabyte": (asked(SMALL).replace(b'"image"', b'"' + b"n" * 1_000_000 + b'"', 1), {}),
    **{f"a header length of {length[:20]!r}": (BODY, {LENGTH: length}) for length in LENGTHS},
}


# Beside twelve times the body, which a list of lists takes in any parser.
MOST_PEAK_BYTES = 64 << 20


def quickest_refusal(http: httpx.Client, body: bytes, headers: dict[str, str]) -> float:
    """Seconds; others may keep the machine busy, so the quickest of a few tells how long it takes."""
    seconds: list[float] = []
    while not seconds or (min(seconds) > 1 and len(seconds) < 4):
        start = time.perf_counter()
        refusal = http.post(
            INFER, content=body, headers=[(k.encode(), v.encode()) for k, v in headers.items()]
        )
        seconds.append(time.perf_counter() - start)
        assert 400 <= refusal.status_code < 500, refusal.text
        assert refusal.json()["error"]
    return min(seconds)


@point(11, 16, 17)
def test_a_malformed_body_is_refused_soon_with_memory_flat(http: httpx.Client, v2_server: Server) -> None:
    process = psutil.Process(v2_server.pid)
    pool(http, asked(IMAGE.tolist()))
    slow = {name: quickest_refusal(http, *sent) for name, sent in MALFORMED.items()}
    assert {name: seconds for name, seconds in slow.items() if seconds > 1} == {}
    for name, (body, headers) in MALFORMED.items():
        peak = v2_server.peak_bytes(lambda body=body, headers=headers: quickest_refusal(http, body, headers))
        assert peak < MOST_PEAK_BYTES + 12 * len(body), name
    # The allocator keeps what the first round needed: what is not flat grows again.
    before = process.memory_info().rss
    for sent in MALFORMED.values():
        quickest_refusal(http, *sent)
    print(f"slowest {max(slow.values()):.3f} s, {(process.memory_info().rss - before) >> 20} MB more")
    assert process.memory_info().rss - before < FLAT_BYTES
    assert pool(http, BODY, **LABELLED)


def test_a_list_of_sixteen_million_numbers_costs_little_memory(http: httpx.Client, v2_server: Server) -> None:
    """All are parsed before the rank is refused; each as an object would take half a gigabyte."""
    count = (32 << 20) // 2 - 128
    body = asked([7], shape=[count]).replace(b"[7]", b"[" + b"0," * (count - 1) + b"0]")
    refusals: list[httpx.Response] = []
    peak = v2_server.peak_bytes(lambda: refusals.append(http.post(INFER, content=body)))
    assert (refusals[0].status_code, refusals[0].json()["code"]) == (422, "shape-mismatch"), refusals[0].text
    assert peak < 150_000_000 + len(body)


@point(21)
def test_a_service_that_still_loads_is_not_ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("loading")
    for index in range(40):
        put(folder, f"m{index}", heavy(), toml="[input]\nsize = [128, 128]\n")
    with serving("--models", str(folder), wait=False) as server, server.client() as client:
        answer = client.get("/v2/health/ready")
        assert client.get("/v2/health/live").status_code == 200
    assert answer.status_code == 503
    assert answer.json()["error"]


@point(23)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", INFER),
        ("PUT", INFER),
        ("POST", "/v2"),
        ("GET", "/v2/repository/index"),
        ("DELETE", "/v2/models/small"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(http: httpx.Client, method: str, path: str) -> None:
    refusal = http.request(method, path)
    assert refusal.status_code == 405
    assert refusal.json()["error"]
    assert refusal.headers["Allow"]


@point(24)
def test_the_index_is_answered_without_a_body(http: httpx.Client, v2_models: Any) -> None:
    rows = http.post("/v2/repository/index").json()
    assert {row["name"] for row in rows} == {path.name for path in v2_models.iterdir()}
    assert {row["state"] for row in rows if row["name"] == "broken"} == {"UNAVAILABLE"}


@point(26)
@pytest.mark.parametrize(
    "parameter", ["triton_enable_empty_final_response", "sequence_id", "sequence_start", "headers", "poool"]
)
def test_a_parameter_that_is_not_taken_is_refused(http: httpx.Client, parameter: str) -> None:
    refusal = http.post(INFER, content=asked(IMAGE.tolist(), parameters={parameter: 1}))
    assert (refusal.status_code, refusal.json()["parameter"]) == (400, parameter)


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"pool": "median"}, 422),
        ({"grid": "7"}, 422),
        ({"region": 3}, 422),
        ({"channels": 99}, 422),
        ({"timeout": -1}, 422),
        ({"timeout": "5"}, 422),
        ({"binary_data_output": 1}, 422),
        ({"grid": "2x2", "pool": "avg"}, 422),
        ({"nested": {"a": 1}}, 400),
        ({"priority": 1}, 200),
        ({"timeout": 0}, 200),
        ({"channels": 0}, 200),
    ],
)
def test_parameters_have_the_values_of_v1(
    http: httpx.Client, parameters: dict[str, Any], status: int
) -> None:
    outputs = [{"name": "stem/relu"}]
    answer = http.post(INFER, content=asked(IMAGE.tolist(), parameters=parameters, outputs=outputs))
    assert answer.status_code == status


def test_binary_data_output_holds_for_outputs_that_do_not_say_otherwise(http: httpx.Client) -> None:
    outputs = [{"name": "pool"}, {"name": "logits", "parameters": {"binary_data": False}}]
    body = asked(IMAGE.tolist(), parameters={"binary_data_output": True}, outputs=outputs)
    answer = http.post(INFER, content=body)
    rows = json.loads(answer.content[: int(answer.headers[LENGTH])])["outputs"]
    assert ["data" in row for row in rows] == [False, True]


def test_a_region_is_cut_out_of_each_output_apart(http: httpx.Client) -> None:
    outputs = [
        {"name": "stem/relu", "parameters": {"region": "0,0,16,16"}},
        {"name": "stem/conv", "parameters": {"pool": "avg"}},
        {"name": "block,1"},
    ]
    rows = http.post(INFER, content=asked(IMAGE.tolist(), outputs=outputs)).json()["outputs"]
    assert [row["shape"] for row in rows] == [[1, 8, 8, 8], [1, 8], [1, 16, 8, 8]]


def test_an_answer_beyond_the_limits_is_refused_before_anything_runs(http: httpx.Client) -> None:
    zeros = np.zeros((1, 3, 512, 512)).tolist()
    layer = [{"name": "stem/conv"}]
    refusal = http.post(INFER, content=asked(zeros, shape=[1, 3, 512, 512], outputs=layer))
    assert (refusal.status_code, refusal.json()["code"]) == (413, "answer-too-large")
    assert refusal.json()["limit"] < refusal.json()["actual"]
    assert "binary_data" in refusal.json()["error"]


def test_every_answer_tells_where_its_time_went(http: httpx.Client) -> None:
    answer = http.post(INFER, content=BODY, headers={**LABELLED, "Accept-Encoding": "identity"})
    stages = [part.partition(";")[0] for part in answer.headers["Server-Timing"].split(", ")]
    assert stages == ["queue", "run", "reduce", "encode"]
    assert answer.headers["Featuremaps-Model"] == "small/1"


@point(27)
@pytest.mark.parametrize("packed", [False, True])
def test_a_body_that_comes_a_byte_a_chunk_is_answered(
    v2_server: Server, http: httpx.Client, packed: bool
) -> None:
    process = psutil.Process(v2_server.pid)
    image = np.zeros((1, 3, 8, 8), np.float32)
    body, headers = with_bytes(asked(size=image.nbytes, shape=image.shape), image.tobytes())
    if packed:
        body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
    pool(http, body, **headers)
    before = process.memory_info().rss
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    address = ("127.0.0.1", int(v2_server.url.rpartition(":")[2]))
    with socket.create_connection(address, 60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{lines}\r\n"
        connection.sendall(head.encode())
        for byte in body:
            connection.sendall(b"1\r\n%c\r\n" % byte)
        connection.sendall(b"0\r\n\r\n")
        answer = http_answer(connection)
    assert answer["outputs"][0]["name"] == "pool"
    assert process.memory_info().rss - before < FLAT_BYTES


def http_answer(connection: socket.socket) -> dict[str, Any]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    found: dict[str, Any] = json.loads(answer.read())
    return found


@point(28)
@pytest.mark.parametrize("after", ["while it is computed", "while it is sent"])
def test_a_client_that_leaves_gives_its_place_back(v2_server: Server, http: httpx.Client, after: str) -> None:
    side = 1024 if after == "while it is computed" else 512
    image = np.zeros((1, 3, side, side), np.float32)
    layer = "map23" if after == "while it is computed" else "map0"
    parameters = {"binary_data_output": True}
    head = asked(size=image.nbytes, shape=image.shape, outputs=[{"name": layer}], parameters=parameters)
    address = ("127.0.0.1", int(v2_server.url.rpartition(":")[2]))
    with socket.create_connection(address, 60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lines = f"Host: x\r\nContent-Length: {len(head) + image.nbytes}\r\n{LENGTH}: {len(head)}\r\n\r\n"
        connection.sendall(
            f"POST /v2/models/heavy/infer HTTP/1.1\r\n{lines}".encode() + head + image.tobytes()
        )
        if after == "while it is sent":
            assert connection.recv(1024)
        else:
            until(lambda: held(http, "featuremaps_in_flight") > 0)
    until(lambda: held(http, "featuremaps_in_flight") == 0 and held(http, "featuremaps_held_bytes") < 1 << 20)


def held(http: httpx.Client, gauge: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((gauge + " ", gauge + "{")))


def until(holds: Any) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("body", "where"),
    [(b"null", "body"), (b"[]", "body"), (b'{"inputs": [7]}', "inputs.0")],
)
def test_what_is_no_object_is_said_to_be_none(http: httpx.Client, body: bytes, where: str) -> None:
    """In the words of JSON, and not of what reads it."""
    refusal = http.post(INFER, content=body).json()
    assert (refusal["detail"], refusal["parameter"]) == (f"{where}: Input should be an object", where)


@pytest.mark.parametrize(
    ("channels", "said"), [("3,1", {"0:fish", "1:dog"}), ("0..4", None), ("top:2", {"0", "1"})]
)
def test_labels_are_those_of_the_channels_that_are_left(
    http: httpx.Client, channels: str, said: set[str] | None
) -> None:
    """Places are those in the output; which channels `top` leaves stands beside it."""
    output = {"name": "logits", "parameters": {"classification": 5, "channels": channels}}
    answer = http.post(INFER, content=asked(IMAGE.tolist(), outputs=[output]))
    told = {text.partition(":")[2] for text in answer.json()["outputs"][0]["data"]}
    assert told == (said or {f"{place}:{label}" for place, label in enumerate(LABELS)})


def test_a_ranking_is_bounded_by_what_it_holds_and_not_by_its_few_words() -> None:
    """It ranks each value of a map in 24 bytes; this map holds 65,536."""
    with serving("--max-map-bytes", "300000") as bundled, bundled.client() as client:
        values = {"name": "image", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [0.5] * 3072}
        answers = [
            client.post(
                "/v2/models/cifar-resnet/infer",
                json={"inputs": [values], "outputs": [{"name": "stem.relu", "parameters": parameters}]},
            )
            for parameters in ({"binary_data": True}, {"classification": 1})
        ]
    assert [answer.status_code for answer in answers] == [200, 413]
