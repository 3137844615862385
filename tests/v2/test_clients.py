"""What programs written for Triton do with the real client, synchronous and asynchronous."""

import asyncio
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from ml_dtypes import bfloat16
from tritonclient.utils import InferenceServerException

from tests.builders import encoded, photograph, put, small_cnn
from tests.oracles import UncutGraph
from tests.servers import managed, serving
from tests.v2.conftest import LABELS
from tests.v2.points import point

Client = triton.InferenceServerClient
IMAGE = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with triton.InferenceServerClient(address) as client:
        yield client


def sent(
    array: np.ndarray, datatype: str = "FP32", name: str = "image", *, binary: bool = True
) -> triton.InferInput:
    given = triton.InferInput(name, array.shape, datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def wanted(*names: str, binary: bool = True, **options: int) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary, **options) for name in names]


def uncut(models: Path, name: str, images: np.ndarray = IMAGE) -> np.ndarray:
    graph = UncutGraph(models / "small/1/model.onnx", [name])
    return np.concatenate([graph.run({"image": image[None]})[name] for image in images])


@point(6, 7)
@pytest.mark.parametrize("binary_in", [True, False])
def test_a_program_for_triton_gets_a_declared_output_and_by_another_name_an_inner_layer(
    client: Client, v2_models: Path, binary_in: bool
) -> None:
    declared = client.infer("small", [sent(IMAGE, binary=binary_in)])
    np.testing.assert_array_equal(declared.as_numpy("logits"), uncut(v2_models, "logits"))
    inner = client.infer("small", [sent(IMAGE, binary=binary_in)], outputs=wanted("stem/relu"))
    np.testing.assert_array_equal(inner.as_numpy("stem/relu"), uncut(v2_models, "stem/relu"))
    assert [output["name"] for output in inner.get_response()["outputs"]] == ["stem/relu"]


@point(4)
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_values_are_the_same_as_bytes_and_as_json(
    client: Client, v2_models: Path, binary_in: bool, binary_out: bool
) -> None:
    result = client.infer(
        "small", [sent(IMAGE, binary=binary_in)], outputs=wanted("block2.add", binary=binary_out)
    )
    np.testing.assert_array_equal(result.as_numpy("block2.add"), uncut(v2_models, "block2.add"))
    assert ("data" in result.get_output("block2.add")) is not binary_out


@point(5)
def test_one_answer_holds_outputs_as_bytes_and_as_json(client: Client, v2_models: Path) -> None:
    outputs = [*wanted("stem/relu", "pool"), *wanted("logits", "block,1", binary=False)]
    result = client.infer("small", [sent(IMAGE)], outputs=outputs)
    for name in ("logits", "stem/relu", "pool", "block,1"):
        np.testing.assert_array_equal(result.as_numpy(name), uncut(v2_models, name))


@point(8)
@pytest.mark.parametrize("name", ["stem/rel", "nothing like it", "index:0", "all", "*", ""])
def test_an_unknown_output_is_refused_with_the_nearest_names(client: Client, name: str) -> None:
    with pytest.raises(InferenceServerException, match="unexpected inference output") as refusal:
        client.infer("small", [sent(IMAGE)], outputs=wanted(name))
    assert refusal.value.status() == "400"
    assert ("stem/relu" in refusal.value.message()) == (name == "stem/rel")


@point(9)
@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", np.array([[True, False]])),
        ("UINT8", np.array([[0, 255]], np.uint8)),
        ("UINT16", np.array([[0, 65535]], np.uint16)),
        ("UINT32", np.array([[0, 2**32 - 1]], np.uint32)),
        ("UINT64", np.array([[1, 2**64 - 1]], np.uint64)),
        ("INT8", np.array([[-128, 127]], np.int8)),
        ("INT16", np.array([[-(2**15), 2**15 - 1]], np.int16)),
        ("INT32", np.array([[-(2**31), 2**31 - 1]], np.int32)),
        ("INT64", np.array([[-(2**63), 2**63 - 1]], np.int64)),
        ("FP16", np.array([[0.1, -65504]], np.float16)),
        ("FP32", np.array([[0.1, -3e38]], np.float32)),
        ("FP64", np.array([[0.1, -1e308]], np.float64)),
        ("BYTES", np.array([["ü \0 x".encode(), b""]], object)),
    ],
)
def test_every_datatype_goes_there_and_back(client: Client, datatype: str, values: np.ndarray) -> None:
    model = f"echo-{datatype.lower()}"
    for binary_in in (True, False):
        for binary_out in (True, False):
            if datatype == "FP16" and not (binary_in and binary_out):
                continue
            given = sent(values, datatype, "given", binary=binary_in)
            result = client.infer(model, [given], outputs=wanted("same", binary=binary_out))
            found = result.as_numpy("same")
            if datatype == "BYTES" and not binary_out:
                found = np.array([[str(x).encode() for x in found.reshape(-1)]], object)
            np.testing.assert_array_equal(found, values)
            assert result.get_output("same")["datatype"] == datatype


@point(9)
def test_bfloat16_goes_there_and_back(client: Client) -> None:
    values = np.array([[1.5, -3e38, np.inf]], bfloat16)
    result = client.infer("echo-bf16", [sent(values, "BF16", "given")], outputs=wanted("same"))
    np.testing.assert_array_equal(result.as_numpy("same"), values)


@point(9)
@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_not_answered_as_json(client: Client, datatype: str) -> None:
    values = np.ones((1, 2), np.float16 if datatype == "FP16" else bfloat16)
    given = sent(values, datatype, "given")
    with pytest.raises(InferenceServerException, match="JSON cannot carry") as refusal:
        client.infer(f"echo-{datatype.lower()}", [given], outputs=wanted("same", binary=False))
    assert refusal.value.status() == "400"


@point(10)
def test_an_empty_batch_gives_empty_maps(client: Client) -> None:
    for binary in (True, False):
        result = client.infer(
            "small", [sent(IMAGE[:0])], outputs=wanted("stem/relu", "logits", binary=binary)
        )
        assert result.get_output("stem/relu")["shape"] == [0, 8, 16, 16]
        assert result.get_output("logits")["shape"] == [0, 5]
        assert result.as_numpy("logits").shape == (0, 5)


@point(10)
def test_an_output_may_be_empty(client: Client) -> None:
    for binary in (True, False):
        zeros = np.zeros((1, 1, 2, 2), np.float32)
        result = client.infer("positions", [sent(zeros)], outputs=wanted("places", binary=binary))
        assert result.as_numpy("places").shape == (4, 0)


@point(11)
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_compressed_request_is_answered(
    client: Client, v2_models: Path, algorithm: str, binary: bool
) -> None:
    result = client.infer(
        "small", [sent(IMAGE, binary=binary)], outputs=wanted("pool"), request_compression_algorithm=algorithm
    )
    np.testing.assert_array_equal(result.as_numpy("pool"), uncut(v2_models, "pool"))


@point(12)
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_compressed_answer_is_the_same(
    client: Client, v2_models: Path, algorithm: str, binary: bool
) -> None:
    zeros = np.zeros((1, 3, 32, 32), np.float32)
    result = client.infer(
        "small",
        [sent(zeros)],
        outputs=wanted("stem/relu", binary=binary),
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(result.as_numpy("stem/relu"), uncut(v2_models, "stem/relu", zeros))


@point(18)
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_what_is_not_finite_goes_there_and_back_as_json(client: Client, datatype: str) -> None:
    dtype = np.float32 if datatype == "FP32" else np.float64
    values = np.array([[np.nan, np.inf, -np.inf, 0.1, -0.0]], dtype)
    given = sent(values, datatype, "given", binary=False)
    result = client.infer(f"echo-{datatype.lower()}", [given], outputs=wanted("same", binary=False))
    np.testing.assert_array_equal(result.as_numpy("same"), values)


@point(19)
def test_the_id_comes_back_where_one_was_sent(client: Client) -> None:
    assert client.infer("small", [sent(IMAGE)], request_id='a " ü').get_response()["id"] == 'a " ü'
    assert "id" not in client.infer("small", [sent(IMAGE)]).get_response()


@point(20)
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("most", [1, 5, 50])
def test_the_highest_classes_are_told_as_text(
    client: Client, v2_models: Path, most: int, binary: bool
) -> None:
    logits = uncut(v2_models, "logits")
    result = client.infer("small", [sent(IMAGE)], outputs=wanted("logits", binary=binary, class_count=most))
    texts = [[f"{row[i]:.6f}:{i}:{LABELS[i]}" for i in np.argsort(-row)[:most]] for row in logits]
    found = [[x.decode() if isinstance(x, bytes) else x for x in row] for row in result.as_numpy("logits")]
    assert found == texts
    assert result.get_output("logits")["datatype"] == "BYTES"


@point(25)
def test_a_model_is_unloaded_and_loaded_by_a_client_with_the_key(tmp_path: Path) -> None:
    put(tmp_path, "moving", small_cnn())
    with managed("--models", str(tmp_path)) as server, Client(server.url.removeprefix("http://")) as client:
        key = server.headers
        client.unload_model("moving", headers=key)
        assert not client.is_model_ready("moving", headers=key)
        with pytest.raises(InferenceServerException, match="unloaded"):
            client.infer("moving", [sent(IMAGE)], headers=key)
        put(tmp_path, "moving", small_cnn(1, 32, 32), "2")
        client.load_model("moving", headers=key)
        assert client.is_model_ready("moving", "2", headers=key)
        index = client.get_model_repository_index(headers=key)
        assert {row["version"]: row["state"] for row in index}["2"] == "READY"
        with pytest.raises(InferenceServerException, match="config"):
            client.load_model("moving", config="{}", headers=key)
        with pytest.raises(InferenceServerException, match="key"):
            client.unload_model("moving")


@point(21, 22)
def test_what_is_not_there_or_failed_is_not_ready(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.is_model_ready("small", "1")
    assert not client.is_model_ready("small", "7")
    assert not client.is_model_ready("absent")
    assert not client.is_model_ready("broken")


@point(22)
def test_an_unknown_model_or_version_is_told(client: Client) -> None:
    for model, version in (("absent", ""), ("small", "7")):
        with pytest.raises(InferenceServerException, match="no ") as refusal:
            client.infer(model, [sent(IMAGE)], model_version=version)
        assert refusal.value.status() == "404"
        with pytest.raises(InferenceServerException):
            client.get_model_metadata(model, version)


@point(30)
def test_the_timeout_is_in_microseconds(client: Client) -> None:
    large = np.zeros((1, 3, 512, 512), np.float32)
    start = time.monotonic()
    with pytest.raises(InferenceServerException, match="no answer within") as refusal:
        client.infer("heavy", [sent(large)], timeout=50_000)
    assert refusal.value.status() == "504"
    assert time.monotonic() - start < 20


@point(29)
def test_256_requests_at_once_are_answered(address: str, v2_models: Path) -> None:
    images = np.random.default_rng(1).normal(size=(256, 1, 3, 32, 32)).astype(np.float32)

    async def ask_all() -> list[np.ndarray]:
        async with triton_aio.InferenceServerClient(address, conn_limit=256) as client:

            async def ask(image: np.ndarray) -> np.ndarray:
                result = await client.infer("small", [sent(image)], outputs=wanted("stem/relu"))
                return result.as_numpy("stem/relu")

            return await asyncio.gather(*map(ask, images))

    found = np.concatenate(asyncio.run(ask_all()))
    np.testing.assert_array_equal(found, uncut(v2_models, "stem/relu", images[:, 0]))


def test_the_asynchronous_client_does_all_that_the_other_does(address: str, v2_models: Path) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("small")
            assert (await client.get_server_metadata())["name"] == "featuremaps"
            assert (await client.get_model_metadata("small"))["name"] == "small"
            assert (await client.get_model_config("small"))["name"] == "small"
            assert (await client.get_inference_statistics())["model_stats"]
            result = await client.infer(
                "small",
                [sent(IMAGE)],
                outputs=wanted("pool"),
                request_compression_algorithm="gzip",
                response_compression_algorithm="deflate",
            )
            np.testing.assert_array_equal(result.as_numpy("pool"), uncut(v2_models, "pool"))
            with pytest.raises(InferenceServerException, match="unexpected inference output"):
                await client.infer("small", [sent(IMAGE)], outputs=wanted("absent"))

    asyncio.run(ask())


def test_metadata_and_configuration_are_the_graphs(client: Client) -> None:
    assert client.get_model_metadata("small", "1") == {
        "name": "small",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 5]}],
    }
    assert client.get_model_metadata("fixed")["inputs"][0]["shape"] == [1, 3, 32, 32]
    configuration = client.get_model_config("small")
    assert configuration["max_batch_size"] == 16
    assert configuration["input"] == [
        {"name": "image", "data_type": "TYPE_FP32", "dims": [3, -1, -1], "optional": False}
    ]
    assert client.get_model_config("fixed")["max_batch_size"] == 0
    assert client.get_model_config("echo-bytes")["input"][0]["data_type"] == "TYPE_STRING"


def test_what_is_counted_grows_with_what_is_asked(client: Client) -> None:
    def counted() -> dict:
        (row,) = client.get_inference_statistics("fixed")["model_stats"]
        return row

    before = counted()
    client.infer("fixed", [sent(IMAGE)])
    with pytest.raises(InferenceServerException):
        client.infer("fixed", [sent(IMAGE)], outputs=wanted("absent"))
    after = counted()
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] == before["execution_count"] + 1
    for name in ("success", "fail", "compute_infer", "compute_output", "queue"):
        more = after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"]
        assert more == 1, name
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert [row["batch_size"] for row in after["batch_stats"]] == [2]
    assert abs(after["last_inference"] / 1000 - time.time()) < 60


def test_a_photograph_is_taken_as_bytes_and_preprocessed_as_elsewhere(
    client: Client, http: httpx.Client, jpeg: bytes
) -> None:
    other = encoded(photograph(90, 120, seed=3), "PNG")
    images = np.array([jpeg, other], object)
    found = client.infer("small", [sent(images, "BYTES")], outputs=wanted("stem/relu", "image"))
    for index, image in enumerate((jpeg, other)):
        answer = http.post("/v1/models/small/features?layers=stem/relu&format=npy", content=image)
        expected = np.load(io.BytesIO(answer.content))
        np.testing.assert_array_equal(found.as_numpy("stem/relu")[index : index + 1], expected)
    assert found.as_numpy("image").shape == (2, 3, 32, 32)


def test_further_inputs_have_their_constants_unless_they_are_sent(client: Client) -> None:
    images = np.abs(IMAGE[:, :, :8, :8])
    np.testing.assert_array_equal(client.infer("two", [sent(images)]).as_numpy("product"), images * 2)
    factor = sent(np.array([3.0], np.float32), name="factor")
    np.testing.assert_array_equal(client.infer("two", [sent(images), factor]).as_numpy("product"), images * 3)


def test_a_model_with_several_inputs_takes_them_all(client: Client) -> None:
    images = np.abs(IMAGE[:, :, :8, :8])
    factor = sent(np.array([3.0], np.float32), name="factor")
    result = client.infer("bare", [factor, sent(images)], outputs=wanted("relu", "product"))
    np.testing.assert_array_equal(result.as_numpy("product"), images * 3)
    with pytest.raises(InferenceServerException, match="'factor' of model 'bare' is missing"):
        client.infer("bare", [sent(images)])


def test_reductions_of_a_request_and_of_an_output_are_those_of_v1(client: Client, v2_models: Path) -> None:
    layer = uncut(v2_models, "stem/relu")
    pooled = client.infer("small", [sent(IMAGE)], outputs=wanted("stem/relu"), parameters={"pool": "max"})
    np.testing.assert_array_equal(pooled.as_numpy("stem/relu"), layer.max((2, 3)))
    few = client.infer(
        "small",
        [sent(IMAGE)],
        outputs=wanted("stem/relu"),
        parameters={"channels": "top:2", "dtype": "uint8"},
    )
    chosen = few.as_numpy("stem/relu#channels")
    assert chosen.tolist() == np.argsort(-layer.mean((2, 3)), axis=1)[:, :2].tolist()
    scale, zero = few.as_numpy("stem/relu#scale"), few.as_numpy("stem/relu#zero_point")
    exact = np.take_along_axis(layer, chosen[:, :, None, None], 1)
    decoded = (few.as_numpy("stem/relu").astype(np.float32) - zero) * scale
    assert (np.abs(decoded - exact) <= scale).all()


def test_a_version_is_asked_by_its_number(client: Client, http: httpx.Client, v2_models: Path) -> None:
    result = client.infer("small", [sent(IMAGE)], model_version="1", outputs=wanted("pool"))
    np.testing.assert_array_equal(result.as_numpy("pool"), uncut(v2_models, "pool"))
    assert result.get_response()["model_version"] == "1"
    assert client.get_model_config("small", "1")["name"] == "small"
    (row,) = client.get_inference_statistics("small", "1")["model_stats"]
    assert (row["name"], row["version"]) == ("small", "1")


def test_all_models_are_named_and_counted_together(client: Client, http: httpx.Client) -> None:
    names = http.get("/v2/models").json()["models"]
    assert {"small", "broken", "echo-bf16"} <= set(names)
    counted = {row["name"] for row in client.get_inference_statistics()["model_stats"]}
    assert counted <= set(names) - {"broken"}
    assert {"small", "echo-bf16"} <= counted


def test_where_requests_share_batches_the_protocols_do_too(v2_models: Path, tmp_path: Path) -> None:
    for name in ("small", "bare"):
        shutil.copytree(v2_models / name, tmp_path / "models" / name)
    options = ("--models", str(tmp_path / "models"), "--batching", "on", "--graph-optimization", "off")
    with serving(*options) as server, Client(server.url.removeprefix("http://")) as client:
        result = client.infer("small", [sent(IMAGE)], outputs=wanted("pool"))
        np.testing.assert_array_equal(result.as_numpy("pool"), uncut(v2_models, "pool"))
        assert client.infer("small", [sent(IMAGE[:0])]).as_numpy("logits").shape == (0, 5)
        factor, images = np.array([3.0], np.float32), np.abs(IMAGE[:, :, :8, :8])
        product = client.infer("bare", [sent(factor, name="factor"), sent(images)]).as_numpy("product")
        np.testing.assert_array_equal(product, images * 3)
