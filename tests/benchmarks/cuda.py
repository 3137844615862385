"""What a GPU gives: `python -m tests.benchmarks.cuda`, with onnxruntime-gpu and a GPU.

ResNet-50 with random weights, a drawn photograph of 100 kB in, one ReLU as float32 `.npy` out. Each row is a
closed loop of so many clients, after a first one that has the batches' sizes compiled.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.early import repository
from tests.benchmarks.overload import bench
from tests.benchmarks.resnet import relus
from tests.servers import Server, serving

DEPTHS = {"early (2nd ReLU)": 1, "deep (last ReLU)": -1}
SECONDS, WARM_SECONDS = "2", "1.5"
EVERY, MANY = ("1", "8", "32"), ("8", "32")
# What is set, how many clients ask at one time, what they ask beside the layer.
RUNS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    ("cuda", ("--provider", "cuda"), EVERY, ()),
    ("cuda, averaged", ("--provider", "cuda"), MANY, ("--query", "pool=avg")),
    ("cuda, no batches", ("--provider", "cuda", "--batching", "off"), EVERY, ()),
    ("cuda, four workers", ("--provider", "cuda", "--workers", "4"), ("32",), ()),
    ("cuda, TF32", ("--provider", "cuda", "--tf32"), MANY, ()),
    ("cpu", (), ("8",), ()),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        names = relus(repository(Path(scratch)))
        for label, options, clients, query in RUNS:
            with serving("--models", scratch, "--log-level", "warning", *options) as server:
                for depth, position in DEPTHS.items():
                    for row in rows(server, names[position], clients, query):
                        print(f"{label:20s} {depth:16s} {line(row)}", flush=True)
                print(f"{label:20s} device memory {device_memory()}", flush=True)


def rows(
    server: Server, layer: str, clients: tuple[str, ...], query: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One a number of clients."""
    bench(server, layer, "--concurrency", clients[-1], "--seconds", WARM_SECONDS, *query)
    return bench(server, layer, "--concurrency", ",".join(clients), "--seconds", SECONDS, *query)


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    times = "  ".join(f"{name} {row[f'{name}_ms']:.2f}" for name in ("p50", "p99", "decode", "run", "encode"))
    return f"{row['load']:>10s}  {row['answers_per_s']:7.1f} answers/s  ms: {times}"


def device_memory() -> str:
    """Of all processes, as the driver tells."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
