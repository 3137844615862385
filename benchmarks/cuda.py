"""What a GPU gives: `python -m benchmarks.cuda`, with onnxruntime-gpu and a GPU.

ResNet-50 with random weights, a drawn photograph of 100 kB in, one ReLU as float32 `.npy` out. Each row is a
closed loop of so many clients, after requests that have the batches' sizes compiled. One process of clients
is at its end before the service is, so many clients come from several.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.early import repository
from benchmarks.images import drawn_image, numbered
from benchmarks.overload import generate
from benchmarks.resnet import relus
from tests.builders import npy
from tests.servers import Server, serving

DEPTHS = {"early (2nd ReLU)": 1, "middle (21st ReLU)": 20, "deep (last ReLU)": -1}
SECONDS, WARM_SECONDS = 2.0, 1.0
GENERATORS = 4
# Images of a request; batches are padded to 1, 4, 16 and 64. Each worker has to be met.
WARM_IMAGES, WARM_TIMES = (1, 2, 5, 17), 4
CUDA = ("--provider", "cuda")
COMMON = ("--log-level", "warning", "--max-images", "64")


@dataclass(frozen=True)
class Setting:
    """What is set, how many clients ask at one time, and what they ask beside the layer."""

    name: str
    options: tuple[str, ...]
    clients: tuple[int, ...]
    query: tuple[str, ...] = ()
    workers: int = 1


SETTINGS = (
    Setting("cuda", CUDA, (1, 8, 32)),
    Setting("cuda, four workers", (*CUDA, "--workers", "4"), (32,), workers=4),
    Setting("cuda, no batches", (*CUDA, "--batching", "off"), (32,)),
    Setting("cuda, averaged", CUDA, (32,), ("--query", "pool=avg")),
    Setting("cuda, TF32", (*CUDA, "--tf32"), (32,)),
    Setting("cpu", (), (8,)),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        names = relus(repository(Path(scratch) / "models"))
        images = [Path(scratch) / f"{number}.jpg" for number in range(GENERATORS)]
        for number, image in enumerate(images):
            # Of its own bytes: identical requests under way are run once.
            image.write_bytes(numbered(drawn_image(), number))
        for setting in SETTINGS:
            with serving("--models", f"{scratch}/models", *COMMON, *setting.options) as server:
                for depth, position in DEPTHS.items():
                    for row in rows(server, names[position], setting, images):
                        print(f"{setting.name:20s} {depth:18s} {line(row)}", flush=True)
                print(f"{setting.name:20s} device memory {device_memory()}", flush=True)


def rows(server: Server, layer: str, setting: Setting, images: list[Path]) -> list[dict[str, Any]]:
    """One a number of clients."""
    for size in WARM_IMAGES * WARM_TIMES * setting.workers:
        several(server, layer, size)
    ask = partial(loaded, server, layer, images, setting.query)
    for clients in setting.clients:
        ask(clients, WARM_SECONDS)
    return [ask(clients, SECONDS) for clients in setting.clients]


def several(server: Server, layer: str, images: int) -> None:
    """One request for so many images."""
    content = npy(np.random.default_rng(0).random((images, 3, 224, 224), np.float32))
    with server.client() as client:
        answer = client.post(
            "/v1/models/resnet50/features",
            params={"layers": layer, "format": "npy"},
            content=content,
            headers={"Content-Type": "application/x-npy"},
        )
    answer.raise_for_status()


def loaded(
    server: Server, layer: str, images: list[Path], query: tuple[str, ...], clients: int, seconds: float
) -> dict[str, Any]:
    """The figures of so many clients: rates are sums, p99 is the worst generator's, the rest their median."""
    images = images[:clients]
    words = ("--concurrency", str(clients // len(images)), *query)

    def one(image: Path) -> dict[str, Any]:
        return generate(server, layer, seconds, "--image", str(image), *words)[0]

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(one, images))
    times = ("p50", "decode", "queue", "run", "encode", "network")
    return {
        "clients": clients,
        "answers_per_s": sum(row["answers_per_s"] for row in found),
        "p99_ms": max(row["p99_ms"] for row in found),
        **{f"{name}_ms": median(row[f"{name}_ms"] for row in found) for name in times},
        "others": sum(sum({**row["refused"], **row["failed"]}.values()) for row in found),
        "generator": max(row["generator_cpu_s"] / row["seconds"] for row in found),
    }


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    names = ("p50", "p99", "queue", "decode", "run", "encode", "network")
    times = "  ".join(f"{name} {row[f'{name}_ms']:.2f}" for name in names)
    return (
        f"{row['clients']:3d} clients {row['answers_per_s']:7.1f} answers/s  ms: {times}  "
        f"not answered {row['others']}  busiest generator {row['generator']:.0%} of a core"
    )


def device_memory() -> str:
    """Of all processes, as the driver tells."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
