"""Encoders that keep the numbers: `.npy`, `.npz`, safetensors, JSON."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.lib import format as npy_format
from safetensors.numpy import save

from service.errors import AnswerTooLarge, NameNotStorable, NonFinite, NotCombinable
from service.parameters import Compress
from service.values import Array, Chunk

METADATA_MEMBER = "__metadata__"
# A zip's names have lengths of two bytes; a refusal says the beginning of one.
LONGEST_MEMBER, LONGEST_SAID = 0xFFFF, 1024
# A fixed time, the earliest that a zip can hold: the same maps give the same bytes.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
# Level 1 costs a third of numpy's 6 and loses few per cent of the gain.
FAST_DEFLATE = 1
HEADERS_KEPT = 256

Metadata = Mapping[str, Any]


class Npz:
    """numpy's archive: one member a layer, named exactly as the layer, and `__metadata__` as JSON text."""

    name, media_type, extension, carries_metadata = "npz", "application/x-npz", "npz", True

    available = True

    def check(self, layers: Sequence[str], compress: Compress) -> None:
        """Refuse names that a zip cannot carry safely.

        Raises:
            NameNotStorable
        """
        for name in layers:
            unsafe = "\\" in name or "\0" in name or ".." in name.split("/")
            unsafe = unsafe or len(f"{name}.npy".encode()) > LONGEST_MEMBER
            # numpy takes the ending off a member's name and then finds one name in two ways.
            if unsafe or name == METADATA_MEMBER or name.endswith(".npy"):
                raise NameNotStorable(
                    f"npz cannot carry the layer name {name[:LONGEST_SAID]!r} safely: ask for "
                    "format=safetensors",
                    layer=name,
                )

    def encode(
        self, arrays: Mapping[str, Array], metadata: Metadata, compress: Compress
    ) -> tuple[Chunk, ...]:
        """The archive's bytes; members are stored, or deflated at a fast level."""
        method = zipfile.ZIP_DEFLATED if compress == "deflate" else zipfile.ZIP_STORED
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method, compresslevel=FAST_DEFLATE) as archive:
            for name, values in arrays.items():
                _write_member(archive, name, values)
            text = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
            _write_member(archive, METADATA_MEMBER, text)
        return (stream.getbuffer(),)


class Safetensors:
    """Names, dtypes and bytes, readable from any language; the metadata's JSON under `featuremaps`."""

    name, media_type, extension, carries_metadata = (
        "safetensors",
        "application/x-safetensors",
        "safetensors",
        True,
    )

    available = True

    def check(self, layers: Sequence[str], compress: Compress) -> None:
        """Members have no compression of their own; the format's own key is taken.

        Raises:
            NotCombinable, NameNotStorable
        """
        _refuse_compress(compress, self.name)
        if METADATA_MEMBER in layers:
            raise NameNotStorable(
                f"safetensors cannot carry a layer called {METADATA_MEMBER!r}: ask for format=npy"
            )

    def encode(
        self, arrays: Mapping[str, Array], metadata: Metadata, compress: Compress
    ) -> tuple[Chunk, ...]:
        """Little-endian, C order, as the format has it."""
        tensors = {name: np.asarray(values, order="C") for name, values in arrays.items()}
        return (save(tensors, {"featuremaps": json.dumps(metadata)}),)


class Npy:
    """One layer as numpy's plain file; it has no room for metadata."""

    name, media_type, extension, carries_metadata = "npy", "application/x-npy", "npy", False

    available = True

    def check(self, layers: Sequence[str], compress: Compress) -> None:
        """Refuse more than one layer.

        Raises:
            NotCombinable
        """
        _refuse_compress(compress, self.name)
        if len(layers) != 1:
            raise NotCombinable(
                f"npy holds one layer and {len(layers)} were asked for: ask for npz or safetensors",
                limit=1,
                actual=len(layers),
            )

    def encode(
        self, arrays: Mapping[str, Array], metadata: Metadata, compress: Compress
    ) -> tuple[Chunk, ...]:
        """Header and values, the values not copied."""
        return _npy(next(iter(arrays.values())))


def encode_json(arrays: Mapping[str, Array], said: Mapping[str, Any], *, max_bytes: int) -> tuple[Chunk, ...]:
    """Numbers as JSON: what is `said` of them, and `layers: [{name, shape, dtype, data: [flat]}]`.

    Raises:
        NonFinite: NaN or infinity, which JSON has no word for.
        AnswerTooLarge: the text is longer than `max_bytes`.
    """
    for name, values in arrays.items():
        _refuse_non_finite(name, values)
    layers = [
        {
            "name": name,
            "shape": values.shape,
            "dtype": values.dtype.name,
            # orjson writes each number with the fewest digits that give the same float32 again.
            "data": np.asarray(values, order="C").ravel(),
        }
        for name, values in arrays.items()
    ]
    body = orjson.dumps({**said, "layers": layers}, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(body) > max_bytes:
        raise AnswerTooLarge(
            f"the answer would be {len(body)} bytes of JSON and at most {max_bytes} are sent: "
            "ask extract_features for arrays, or for fewer layers",
            limit=max_bytes,
            actual=len(body),
        )
    return (body,)


def least_json_bytes(dtype: np.dtype[np.generic]) -> int:
    """The fewest characters that one number takes: `0.0,`, `0,`, `true,`."""
    return {"f": 4, "b": 5}.get(dtype.kind, 2)


def _refuse_compress(compress: Compress, name: str) -> None:
    if compress != "none":
        raise NotCombinable(
            f"compress={compress} is for format=npz; {name} is sent as it is, and smaller on the wire "
            "with Accept-Encoding: zstd or gzip"
        )


def _refuse_non_finite(name: str, values: Array) -> None:
    if values.dtype.kind != "f":
        return
    count = int(np.count_nonzero(~np.isfinite(values)))
    if count:
        raise NonFinite(
            f"layer {name!r} holds {count} values that are NaN or infinite, which JSON "
            "cannot carry: ask extract_features for arrays",
            layer=name,
            count=count,
        )


def _npy(values: Array) -> tuple[Chunk, ...]:
    values = np.asarray(values, order="C")
    header = _npy_header(values.dtype, values.shape)
    return (header, values.reshape(-1).view(np.uint8).data) if values.size else (header,)


@lru_cache(HEADERS_KEPT)
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """numpy's own, kept: the same layers are asked for again and again."""
    header = io.BytesIO()
    told = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(header, told)
    return header.getvalue()


def _write_member(archive: zipfile.ZipFile, name: str, values: Array) -> None:
    member = zipfile.ZipInfo(f"{name}.npy", ZIP_EPOCH)
    member.compress_type = archive.compression
    member.external_attr = 0o600 << 16
    with archive.open(member, "w", force_zip64=values.nbytes >= zipfile.ZIP64_LIMIT) as stream:
        for chunk in _npy(values):
            stream.write(chunk)
