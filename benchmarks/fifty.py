"""Fifty different layers of ResNet-50 asked for one after another: memory, first answers, second round.

Against one session of the whole network: its build in a process of its own, and the service's memory once
it has answered nothing but the network's output.
"""

import http.client
import json
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.early import jpeg, repository
from tests.servers import Server, serving

LAYERS, ROUNDS = 50, 3
BUILD = """
import sys, time
import onnxruntime as ort
ort.set_default_logger_severity(4)
ort.set_global_thread_pool_sizes(1, 1)
options = ort.SessionOptions()
options.use_per_session_threads = False
start = time.perf_counter()
ort.InferenceSession(sys.argv[1], options, ["CPUExecutionProvider"])
print(time.perf_counter() - start)
"""


def build_seconds(file: Path) -> float:
    """How long one session of the whole network takes to build, the quickest of three."""
    command = [sys.executable, "-c", BUILD, str(file)]
    return min(float(subprocess.check_output(command, text=True)) for _ in range(3))


class Asking:
    """One client that asks for one layer at a time."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        self._process = psutil.Process(server.pid)
        self._image = jpeg()

    @property
    def rss_mb(self) -> float:
        return self._process.memory_info().rss / 1e6

    def names(self) -> list[str]:
        self._connection.request("GET", "/v1/models/resnet50/layers")
        rows = json.loads(self._connection.getresponse().read())["layers"]
        return [row["name"] for row in rows]

    def seconds(self, layer: str) -> float:
        query = urllib.parse.urlencode({"layers": layer, "format": "npy"})
        start = time.perf_counter()
        self._connection.request("POST", f"/v1/models/resnet50/features?{query}", self._image)
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status == 200
        return time.perf_counter() - start

    def round(self, layers: Sequence[str]) -> list[float]:
        return [self.seconds(layer) for layer in layers]


def measure(folder: Path) -> dict[str, float]:
    """Seconds and megabytes, and their ratios to one full session's."""
    build = build_seconds(repository(folder))
    with serving("--models", str(folder)) as server:
        asking = Asking(server)
        names = asking.names()
        asking.round(names[-1:] * 5)
        one_session_mb = asking.rss_mb
        chosen = [names[i] for i in np.linspace(0, len(names) - 1, LAYERS).astype(int)]
        rounds, rss = [], []
        for _ in range(ROUNDS):
            rounds.append(asking.round(chosen))
            rss.append(asking.rss_mb)
    return {
        "build_s": build,
        "slowest_first_s": max(rounds[0]),
        "slowest_first_to_build": max(rounds[0]) / build,
        "first_round_s": sum(rounds[0]),
        "second_round_s": sum(rounds[1]),
        "third_round_s": sum(rounds[2]),
        "one_session_mb": one_session_mb,
        "fifty_layers_mb": max(rss),
        "memory_ratio": max(rss) / one_session_mb,
    }
