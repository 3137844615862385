"""The limit: the same job in one process without HTTP. `python -m ...bare FILE LAYER SECONDS IMAGE...`."""

import json
import sys
import threading
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.peers.job import Job

THREADS = 2


def alone(job: Job, images: list[bytes], layer: str, seconds: float) -> float:
    """The median milliseconds of an answer when one thread works."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        job.answer(images[len(times) % len(images)], layer)
        times.append(time.perf_counter() - start)
    return median(times) * 1000


def together(job: Job, images: list[bytes], layer: str, seconds: float) -> tuple[int, float, float]:
    """Answers, wall and CPU seconds when all threads work."""
    done = [0] * THREADS
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < end:
            job.answer(images[done[index] % len(images)], layer)
            done[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    start, used = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done), time.perf_counter() - start, time.process_time() - used


def main(file: str, layer: str, seconds: str, *pictures: str) -> None:
    images, job = [Path(picture).read_bytes() for picture in pictures], Job(file)
    size = len(job.answer(images[0], layer))
    together(job, images, layer, 0.5)
    p50 = alone(job, images, layer, float(seconds) / 2)
    answers, wall, cpu = together(job, images, layer, float(seconds))
    memory = psutil.Process().memory_full_info()
    figures = {"p50_ms": p50, "rate": answers / wall, "cpu_ms": cpu / answers * 1000, "bytes": size}
    print(json.dumps({**figures, "rss_mb": memory.rss / 1e6, "pss_mb": memory.pss / 1e6}))


if __name__ == "__main__":
    main(*sys.argv[1:])
