"""Every format round-trips in its own well-known reader."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load as load_safetensors

from service.errors import AnswerTooLarge, NameNotStorable, NonFinite, NotCombinable
from service.output.arrays import encode_json
from service.output.table import FORMATS
from service.parameters import Compress

DTYPES = ["float32", "float16", "float64", "int64", "int32", "uint8", "int8", "bool"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\\\0"), min_size=1, max_size=40).filter(
    lambda name: ".." not in name.split("/") and not name.endswith(".npy") and name != "__metadata__"
)
SOME_IMAGES = st.integers(1, 3).flatmap(
    lambda images: st.dictionaries(
        NAMES,
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(
                dtype, st.tuples(st.just(images), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
            )
        ),
        min_size=1,
        max_size=3,
    )
)
MAPS = st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=4)


def encoded(
    kind: str,
    arrays: dict[str, np.ndarray],
    metadata: dict[str, Any] | None = None,
    compress: Compress = "none",
) -> bytes:
    return b"".join(FORMATS[kind].encode(arrays, metadata or {}, compress))


def same(actual: np.ndarray, expected: np.ndarray) -> bool:
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    return actual.tobytes() == np.ascontiguousarray(expected).tobytes()


@given(MAPS, st.sampled_from(["none", "deflate"]))
def test_numpy_reads_npz(arrays: dict[str, np.ndarray], compress: Compress) -> None:
    read = np.load(io.BytesIO(encoded("npz", arrays, {"a": 1}, compress)), allow_pickle=False)
    assert set(read.files) == {*arrays, "__metadata__"}
    assert all(same(read[name], values) for name, values in arrays.items())
    assert json.loads(read["__metadata__"].tobytes()) == {"a": 1}


@given(MAPS)
def test_safetensors_reads_safetensors(arrays: dict[str, np.ndarray]) -> None:
    read = load_safetensors(encoded("safetensors", arrays))
    assert set(read) == set(arrays)
    assert all(same(read[name], values) for name, values in arrays.items())


@given(ARRAYS)
def test_numpy_reads_npy(values: np.ndarray) -> None:
    assert same(np.load(io.BytesIO(encoded("npy", {"a": values})), allow_pickle=False), values)


@given(SOME_IMAGES)
def test_pyarrow_reads_arrow(arrays: dict[str, np.ndarray]) -> None:
    import pyarrow as pa

    images = len(next(iter(arrays.values())))
    body = encoded("arrow", arrays, {"images": images})
    table = pa.ipc.open_stream(body).read_all()
    assert json.loads(table.schema.metadata[b"featuremaps"])["images"] == images
    assert table.column_names == list(arrays)
    for name, values in arrays.items():
        read = table.column(name).combine_chunks().to_numpy_ndarray()
        assert same(read, values.astype(np.uint8) if values.dtype == bool else values)


def test_arrow_holds_a_layer_without_a_batch_axis_whole() -> None:
    import pyarrow as pa

    boxes = np.arange(12.0).reshape(3, 4)
    table = pa.ipc.open_stream(encoded("arrow", {"boxes": boxes}, {"images": 1})).read_all()
    assert np.array_equal(table.column("boxes").combine_chunks().to_numpy_ndarray()[0], boxes)


@pytest.mark.parametrize("shape", [(2, 4, 0, 8), (1, 0)])
def test_arrow_holds_a_layer_without_values(shape: tuple[int, ...]) -> None:
    import pyarrow as pa

    body = encoded("arrow", {"a": np.zeros(shape, np.float32)}, {"images": shape[0]})
    read = pa.ipc.open_stream(body).read_all().column("a").combine_chunks().to_numpy_ndarray()
    assert (read.shape, read.dtype) == (shape, np.float32)


def test_safetensors_carries_the_metadata() -> None:
    body = encoded("safetensors", {"a": np.zeros(3)}, {"model": "m"})
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    assert json.loads(header["__metadata__"]["featuremaps"]) == {"model": "m"}


def test_a_layer_not_in_memory_order_keeps_its_values() -> None:
    turned = np.arange(6.0).reshape(2, 3).T
    assert same(np.load(io.BytesIO(encoded("npy", {"a": turned}))), turned)


def test_npz_members_are_stored_so_that_nothing_is_spent_on_them() -> None:
    archive = zipfile.ZipFile(io.BytesIO(encoded("npz", {"a/b": np.zeros(1000)})))
    assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    assert archive.namelist() == ["a/b.npy", "__metadata__.npy"]


def test_deflate_makes_zeros_small() -> None:
    plain, small = (len(encoded("npz", {"a": np.zeros(10_000)}, {}, c)) for c in ("none", "deflate"))
    assert small < plain / 20


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_maps_give_the_same_bytes(kind: str) -> None:
    arrays = {"a": np.arange(6.0).reshape(1, 6)}
    assert encoded(kind, arrays) == encoded(kind, arrays)


@pytest.mark.parametrize(
    "name", ["../evil", "a/../b", "..", "a\\b", "a\0b", "__metadata__", "x.npy", "ü" * 32766]
)
def test_npz_refuses_names_that_a_zip_cannot_carry(name: str) -> None:
    with pytest.raises(NameNotStorable, match="safetensors"):
        FORMATS["npz"].check([name], "none")


@pytest.mark.parametrize("name", ["/layer1/relu", "a:b", "..a", "a..b", "x y", "ü", "ü" * 32765])
def test_npz_takes_other_odd_names(name: str) -> None:
    FORMATS["npz"].check([name], "none")
    assert np.load(io.BytesIO(encoded("npz", {name: np.zeros(1)})))[name] == 0


def test_npy_holds_one_layer() -> None:
    with pytest.raises(NotCombinable, match="npz or safetensors"):
        FORMATS["npy"].check(["a", "b"], "none")


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_compress_is_for_npz_only(kind: str) -> None:
    with pytest.raises(NotCombinable, match="Accept-Encoding"):
        FORMATS[kind].check(["a"], "deflate")


@given(
    hnp.arrays(
        "float32", hnp.array_shapes(), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_json_numbers_give_the_same_floats_again(values: np.ndarray) -> None:
    body = json.loads(b"".join(encode_json({"a": values}, {"model": "m", "version": "1"}, max_bytes=1 << 20)))
    (written,) = body["layers"]
    assert (body["model"], body["version"], written["name"]) == ("m", "1", "a")
    assert same(np.array(written["data"], written["dtype"]).reshape(written["shape"]), values)


def test_json_refuses_what_it_has_no_word_for() -> None:
    with pytest.raises(NonFinite) as refusal:
        encode_json({"a": np.array([1.0, np.nan, np.inf])}, {"model": "m", "version": "1"}, max_bytes=1000)
    assert refusal.value.extensions == {"layer": "a", "count": 2}


def test_json_is_capped() -> None:
    with pytest.raises(AnswerTooLarge):
        encode_json({"a": np.ones(1000)}, {"model": "m", "version": "1"}, max_bytes=1000)
