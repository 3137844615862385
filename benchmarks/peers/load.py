"""The client, one and the same for all: wrk where it is installed, else threads in a process of its own."""

import http.client
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent


@dataclass
class Load:
    """What a closed loop saw: milliseconds of an answer, answers a second, the client's own CPU."""

    concurrency: int
    answers: int
    rate: float
    p50_ms: float
    errors: int
    client_cpu_ms: float
    server_cpu_ms: float = 0.0


def client_name() -> str:
    return "wrk" if shutil.which("wrk") else "http.client"


def numbered(image: bytes, number: int) -> bytes:
    """The JPEG with a comment of its own, so that nothing on the way has seen it before."""
    comment = f"{number:012d}".encode()
    return image[:2] + b"\xff\xfe\x00\x0e" + comment + image[2:]


def load(url: str, images: list[Path], concurrency: int, seconds: float) -> Load:
    command = [sys.executable, "-m", "benchmarks.peers.load", url, str(concurrency), str(seconds)]
    if client_name() == "wrk":
        script, whole = HERE / "load.lua", max(1, round(seconds))
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{whole}", "--timeout", "30", "-s", str(script), url]
    before = _children_cpu()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 60,
        env={**os.environ, "LOAD_IMAGES": ":".join(map(str, images))},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    answers = max(1, found["answers"])
    cpu = (_children_cpu() - before) / answers * 1000
    rate = found["answers"] / found["seconds"]
    return Load(concurrency, found["answers"], rate, found["p50_ms"], found["errors"], cpu)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _threads(url: str, concurrency: int, seconds: float) -> dict[str, float]:
    """Each thread asks anew as soon as it is answered, on a connection that it keeps."""
    images = [Path(name).read_bytes() for name in os.environ["LOAD_IMAGES"].split(":")]
    numbers = itertools.count(1)
    host, path = url.removeprefix("http://").split("/", 1)
    times: list[float] = []
    errors: list[int] = []
    start = time.perf_counter()

    def ask() -> None:
        client = http.client.HTTPConnection(host, timeout=30)
        while time.perf_counter() < start + seconds:
            number = next(numbers)
            image = numbered(images[number % len(images)], number)
            began = time.perf_counter()
            client.request("POST", "/" + path, image, {"Content-Type": "image/jpeg"})
            answer = client.getresponse()
            answer.read()
            times.append(time.perf_counter() - began)
            if answer.status != 200:
                errors.append(answer.status)
        client.close()

    threads = [threading.Thread(target=ask) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    return {"answers": len(times), "seconds": took, "p50_ms": median(times) * 1000, "errors": len(errors)}


if __name__ == "__main__":
    print(json.dumps(_threads(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
