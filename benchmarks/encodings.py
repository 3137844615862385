"""Bytes and milliseconds of every way to send ResNet-50's first stage, side by side in one process."""

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import zstandard
from isal import igzip

from benchmarks.early import jpeg, repository
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.intake.decode import decode
from service.intake.preprocess import preprocess
from service.output import coding
from service.output.reduce import apply
from service.output.table import FORMATS
from service.parameters import Reduction
from service.values import FeatureMap

REPEATS = 15


def first_stage(folder: Path) -> FeatureMap:
    """The first stage's map of a photograph: (1, 64, 112, 112) float32, 3.2 MB."""
    file = repository(folder)
    model = load("resnet50", "1", file, folder / "resnet50", Runtime(), PlanCache(1 << 30))
    prepared = preprocess(decode(jpeg(), max_pixels=10**8), model.recipe_at(None), model.image_spec())
    (layer,) = model.layers().select(["stage:0"])
    return FeatureMap(layer, model.run(prepared.tensor, [layer])[layer.name])


def ours(feature_map: FeatureMap, dtype: str, codec: str | None) -> bytes:
    arrays = apply(feature_map, Reduction(dtype=dtype), [None])  # type: ignore[arg-type]
    chunks = FORMATS["safetensors"].encode(arrays, {}, "none")
    packed = coding.encode(chunks, codec) if codec else None  # type: ignore[arg-type]
    return b"".join(packed or chunks)


def savez(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, values)
    return stream.getvalue()


def ways(feature_map: FeatureMap) -> dict[str, Callable[[], bytes]]:
    values = feature_map.values
    table: dict[str, Callable[[], bytes]] = {
        f"{dtype} {codec or 'identity'}": (lambda d=dtype, c=codec: ours(feature_map, d, c))
        for dtype in ("native", "float16", "uint8")
        for codec in (None, "gzip", "zstd")
    }
    raw = values.tobytes()
    for level in (-3, 1, 3):
        table[f"zstd level {level}, float32"] = lambda n=level: zstandard.ZstdCompressor(level=n).compress(
            raw
        )
    for level in (0, 1, 2):
        table[f"igzip level {level}, float32"] = lambda n=level: igzip.compress(raw, n)
    table["numpy.savez_compressed"] = lambda: savez(values)
    table["JSON by orjson"] = lambda: orjson.dumps(values.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
    table["JSON by json"] = lambda: json.dumps(values.ravel().tolist()).encode()
    table["base64"] = lambda: base64.b64encode(raw)
    return table


def measure(folder: Path) -> Iterator[str]:
    """A line a way: bytes, share of the raw float32, milliseconds (median)."""
    feature_map = first_stage(folder)
    raw = feature_map.values.nbytes
    for name, way in ways(feature_map).items():
        times = []
        for _ in range(REPEATS if "JSON by json" not in name and "savez" not in name else 3):
            start = time.perf_counter()
            size = len(way())
            times.append(time.perf_counter() - start)
        median = sorted(times)[len(times) // 2] * 1000
        share, speed = size / raw, median / (raw / 1e6)
        yield f"{name:32} {size:>10} bytes  {share:6.3f} of raw  {median:8.2f} ms  {speed:6.2f} ms/MB"
