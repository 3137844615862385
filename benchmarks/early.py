"""What a layer costs the service, against the bare pipeline: CPU seconds and latency an answer, side by side.

ResNet-50 with random weights, a 100 kB JPEG in, one ReLU as float32 `.npy` out. The bare pipeline is Pillow,
numpy, the graph cut by hand and `np.save`, in one process with one thread, as the service runs a network by
default. What HTTP itself takes is told by a static endpoint: FastAPI on the same server, which reads the same
body and answers as many bytes to the same client.
"""

import http.client
import io
import json
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image

from benchmarks.resnet import INPUT, random_resnet50, relus
from tests.builders import encoded, photograph
from tests.servers import serving

# Where the system happens to put a process's pages makes its network a twentieth slower or faster for as long
# as it lives, so each side is started several times.
STARTS, ROUNDS, ANSWERS = 4, 3, 30
# CPU seconds, median seconds and bytes an answer: of the bare pipeline, the service and the static endpoint;
# and the median seconds of the first and the last in turns.
Rows = list[tuple[float, ...]]
MODEL_TOML = "[input]\nresize = 256\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"


def jpeg() -> bytes:
    """About 100 kB: noise makes it large."""
    return encoded(photograph(500, 375, seed=1), "JPEG", quality=96)


def repository(folder: Path) -> Path:
    file = random_resnet50(folder / "resnet50" / "1" / "model.onnx")
    (folder / "resnet50" / "model.toml").write_text(MODEL_TOML)
    return file


def bare(file: Path, layer: str) -> None:
    """For each number on standard input a line: CPU seconds, median seconds and bytes of so many answers."""
    import onnx
    import onnxruntime as ort

    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(onnx.load(file)))
    cut = extractor.extract_model([INPUT], [layer])
    ort.set_global_thread_pool_sizes(1, 1)
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    session = ort.InferenceSession(cut.SerializeToString(), options, ["CPUExecutionProvider"])
    image, me = jpeg(), psutil.Process()
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)

    def answer() -> int:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        width, height = picture.size
        short = 256 / min(width, height)
        picture = picture.resize((int(width * short), int(height * short)), Image.Resampling.BILINEAR)
        left, top = round((picture.width - 224) / 2), round((picture.height - 224) / 2)
        picture = picture.crop((left, top, left + 224, top + 224))
        x = (np.asarray(picture, np.float32) / 255 - mean) / std
        values = session.run([layer], {INPUT: np.ascontiguousarray(x.transpose(2, 0, 1)[None])})[0]
        stream = io.BytesIO()
        np.save(stream, values)
        return len(stream.getvalue())

    for answers in map(int, sys.stdin):
        before, times = sum(me.cpu_times()[:2]), []
        for _ in range(answers):
            start = time.perf_counter()
            size = answer()
            times.append(time.perf_counter() - start)
        used = sum(me.cpu_times()[:2]) - before
        print(json.dumps([used / answers, median(times), size]), flush=True)


def static(size: int) -> None:
    """Serve FastAPI that reads the body and answers so many bytes; prints its port."""
    app, content = FastAPI(), bytes(size)

    @app.post("/")
    async def answer(request: Request) -> Response:
        await request.body()
        return Response(content, media_type="application/x-npy")

    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    # The connection is kept while the others have their turns.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, loop="uvloop", http="httptools", timeout_keep_alive=75
    )
    uvicorn.Server(config).run(sockets=[listening])


def measure(folder: Path, position: int = 1) -> dict[str, float]:
    """Medians of rounds that alternate: CPU milliseconds an answer, their ratio, and the latency's p50.

    `p50_over_both_ms` is over the bare pipeline and the static endpoint, each asked over and over. So the
    endpoint's code stays in the caches and its core awake, as no server's does that runs a network in
    between; `p50_over_turns_ms` is over both where they take turns.
    """
    file = repository(folder)
    return _summary([_rounds(folder, file, position) for _ in range(STARTS)])


def _rounds(folder: Path, file: Path, position: int) -> Rows:
    """Of one start, without the round that warms up."""
    layer = relus(file)[position]
    query = urllib.parse.urlencode({"layers": layer, "format": "npy"})
    path = f"/v1/models/resnet50/features?{query}"
    with _helper("bare", file, layer) as peer, serving("--models", str(folder)) as server:
        size = _ask(peer)[2]
        with _helper("static", size) as http_only:
            assert http_only.stdout
            alone = _Client(f"127.0.0.1:{int(http_only.stdout.readline())}", http_only.pid, "/")
            served = _Client(server.url.removeprefix("http://"), server.pid, path)
            rows = [
                (*_ask(peer), *served.answers(), *alone.answers(), _turns(peer, alone))
                for _ in range(ROUNDS + 1)
            ]
    return rows[1:]


@contextmanager
def _helper(*words: object) -> Iterator[subprocess.Popen[str]]:
    """This module in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.early", *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _turns(peer: subprocess.Popen[str], alone: "_Client") -> float:
    """Median seconds of a bare answer and a static one behind it."""
    return median(_ask(peer, 1)[1] + alone.seconds()[0] for _ in range(ANSWERS))


def _ask(peer: subprocess.Popen[str], answers: int = ANSWERS) -> tuple[float, float, int]:
    assert peer.stdin
    assert peer.stdout
    peer.stdin.write(f"{answers}\n")
    peer.stdin.flush()
    cpu, wall, size = json.loads(peer.stdout.readline())
    return cpu, wall, size


class _Client:
    """One client that waits for each answer."""

    def __init__(self, address: str, pid: int, path: str) -> None:
        self._connection = http.client.HTTPConnection(address)
        self._process = psutil.Process(pid)
        self._path = path
        self._image = jpeg()

    def answers(self) -> tuple[float, float, int]:
        """CPU seconds an answer, median seconds, bytes."""
        before = sum(self._process.cpu_times()[:2])
        times, (size, *_) = zip(*(self.seconds() for _ in range(ANSWERS)), strict=True)
        used = sum(self._process.cpu_times()[:2]) - before
        return used / ANSWERS, median(times), size

    def seconds(self) -> tuple[float, int]:
        """Of one answer, and its bytes."""
        start = time.perf_counter()
        self._connection.request("POST", self._path, self._image, {"Content-Type": "image/jpeg"})
        body = self._connection.getresponse().read()
        return time.perf_counter() - start, len(body)


def _summary(starts: list[Rows]) -> dict[str, float]:
    columns = np.array([row for rows in starts for row in rows])
    bare_cpu, bare, bare_bytes, cpu, served, sent, _, alone, _, turns = np.median(columns, axis=0).tolist()
    assert bare_bytes == sent
    return {
        "bare_cpu_ms": bare_cpu * 1000,
        "service_cpu_ms": cpu * 1000,
        "cpu_ratio": float(np.median(columns[:, 3] / columns[:, 0])),
        "bare_p50_ms": bare * 1000,
        "static_p50_ms": alone * 1000,
        "turns_p50_ms": turns * 1000,
        "service_p50_ms": served * 1000,
        "p50_over_both_ms": float(np.median(columns[:, 4] - columns[:, 1] - columns[:, 7])) * 1000,
        "p50_over_turns_ms": float(np.median(columns[:, 4] - columns[:, 9])) * 1000,
        "bytes": sent,
    }


if __name__ == "__main__":
    if sys.argv[1] == "static":
        static(int(sys.argv[2]))
    else:
        bare(Path(sys.argv[2]), sys.argv[3])
