"""What an early layer costs the service, against the bare pipeline: CPU seconds an answer, side by side.

ResNet-50 with random weights, a 100 kB JPEG in, the second ReLU as float32 `.npy` out. The bare
pipeline is Pillow, numpy, the graph cut by hand and `np.save`, in one process with one thread, as the
service runs a network by default.
"""

import http.client
import io
import json
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from tests.benchmarks.resnet import INPUT, random_resnet50, relus
from tests.builders import encoded, photograph
from tests.servers import serving

ROUNDS, ANSWERS = 4, 60
MODEL_TOML = "[input]\nresize = 256\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"


def jpeg() -> bytes:
    """About 100 kB: noise makes it large."""
    return encoded(photograph(500, 375, seed=1), "JPEG", quality=96)


def repository(folder: Path) -> Path:
    file = random_resnet50(folder / "resnet50" / "1" / "model.onnx")
    (folder / "resnet50" / "model.toml").write_text(MODEL_TOML)
    return file


def bare(file: Path, layer: str) -> None:
    """Answers a line for each line on standard input: the CPU seconds of ANSWERS answers."""
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

    for _ in sys.stdin:
        before, start = sum(me.cpu_times()[:2]), time.perf_counter()
        for _ in range(ANSWERS):
            size = answer()
        used = sum(me.cpu_times()[:2]) - before
        print(json.dumps([used / ANSWERS, (time.perf_counter() - start) / ANSWERS, size]), flush=True)


def measure(folder: Path, position: int = 1) -> dict[str, float]:
    """Medians of CPU milliseconds an answer, and their ratio round by round."""
    file = repository(folder)
    layer = relus(file)[position]
    command = [sys.executable, "-m", "tests.benchmarks.early", str(file), layer]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert peer.stdin
    assert peer.stdout
    rows = []
    try:
        with serving("--models", str(folder)) as server:
            client = http.client.HTTPConnection(server.url.removeprefix("http://"))
            for _ in range(ROUNDS + 1):
                peer.stdin.write("\n")
                peer.stdin.flush()
                rows.append((*json.loads(peer.stdout.readline()), *_served(client, server.pid, layer)))
            client.close()
    finally:
        peer.stdin.close()
        peer.wait(30)
        peer.stdout.close()
    return _summary(rows[1:])


def _served(client: http.client.HTTPConnection, pid: int, layer: str) -> tuple[float, float, int]:
    process, image = psutil.Process(pid), jpeg()
    query = urllib.parse.urlencode({"layers": layer, "format": "npy"})
    headers = {"Content-Type": "image/jpeg"}
    before, start = sum(process.cpu_times()[:2]), time.perf_counter()
    for _ in range(ANSWERS):
        client.request("POST", f"/v1/models/resnet50/features?{query}", image, headers)
        body = client.getresponse().read()
    used = sum(process.cpu_times()[:2]) - before
    return used / ANSWERS, (time.perf_counter() - start) / ANSWERS, len(body)


def _summary(rows: list[tuple[float, ...]]) -> dict[str, float]:
    columns = np.array(rows)
    bare_cpu, bare_wall, bare_bytes, cpu, wall, sent = np.median(columns, axis=0)
    assert bare_bytes == sent
    return {
        "bare_cpu_ms": bare_cpu * 1000,
        "service_cpu_ms": cpu * 1000,
        "cpu_ratio": float(np.median(columns[:, 3] / columns[:, 0])),
        "bare_wall_ms": bare_wall * 1000,
        "service_wall_ms": wall * 1000,
        "bytes": sent,
    }


if __name__ == "__main__":
    bare(Path(sys.argv[1]), sys.argv[2])
