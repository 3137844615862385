"""What five times more than it can do makes of the service: `python -m benchmarks.overload`.

ResNet-50 with random weights, a drawn photograph of 100 kB in, the last ReLU as float32 `.npy` out; with
`--relu 1` an early one, where many more requests arrive and reading them is much of the work.
The peak is found in a closed loop: several numbers of clients, the best one measured once more, since the
best of several is flattered by chance. Then requests arrive at five times that rate, as Poisson's do.

Generator and server share the machine's cores, and five times the requests cost the generator more. It runs
in a process of its own, so its CPU time is known; with c of its CPU seconds a second on n cores the server
had 1 - c/n of the machine at most. The ratio of goodput to peak is told as measured, and with both divided by
that share, which leaves the generator out as far as the server is bound by its CPU. Latencies are told as
the client saw them, from when a request was due; what the generator itself was late is in them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.early import repository
from benchmarks.memory import MB, sampled, slope
from benchmarks.resnet import relus
from tests.servers import Server, serving

CLIENTS = (2, 4, 8, 16)
TIMES_PEAK = 5
LEAST_GOODPUT, MOST_REFUSAL_MS, MOST_GROWTH_MB = 0.95, 50.0, 16.0
REST_S = 3


def generate(server: Server, layer: str, seconds: float, *words: str) -> list[dict[str, Any]]:
    """Run `benchmarks.load` in a process of its own and return its rows, one per load."""
    given = (server.url, "--layer", layer, "--seconds", f"{seconds:.3f}", *words)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *given],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def closed(server: Server, layer: str, clients: int, seconds: float) -> dict[str, Any]:
    """One closed loop of exactly so long."""
    return generate(server, layer, seconds, "--concurrency", str(clients))[0]


def left_out(row: dict[str, Any]) -> float:
    """Answers a second of the share of the machine that the generator did not take."""
    taken = row["generator_cpu_s"] / row["seconds"] / (os.cpu_count() or 1)
    return float(row["answers_per_s"] / (1 - taken))


def measure(folder: Path, seconds: float, *options: str, relu: int = -1) -> dict[str, Any]:
    """Peak, overload and peak again; rows as `benchmarks.load` prints them, memory in MB."""
    layer = relus(repository(folder))[relu]
    with serving("--models", str(folder), "--log-level", "warning", *options) as server:
        tried = generate(server, layer, seconds / 6, "--concurrency", *map(str, CLIENTS))
        best = max(tried, key=lambda row: row["answers_per_s"])["concurrency"]
        before = closed(server, layer, best, seconds / 2)
        with sampled(server.pid) as idle:
            time.sleep(REST_S)
        rate = f"{TIMES_PEAK * before['answers_per_s']:.3f}"
        with sampled(server.pid) as busy:
            over = generate(server, layer, seconds, "--rate", rate)[0]
        after = closed(server, layer, best, seconds / 2)
        with sampled(server.pid) as rested:
            time.sleep(REST_S)
    return {
        "clients": best,
        "before": before,
        "overload": over,
        "after": after,
        "goodput_as_measured": over["answers_per_s"] / before["answers_per_s"],
        "goodput": left_out(over) / left_out(before),
        "recovered": left_out(after) / left_out(before),
        "rss_before_mb": idle[-1][1] / MB,
        "rss_peak_mb": max(value for _, value in busy) / MB,
        "rss_after_mb": rested[-1][1] / MB,
        "rss_slope": slope(busy),
    }


def faults(found: dict[str, Any]) -> list[str]:
    """What `--check` does not let pass."""
    refusal_ms = found["overload"]["refused_p99_ms"].get("503")
    others = {k: n for k, n in found["overload"]["refused"].items() if k != "503"}
    checks = {
        f"goodput is {found['goodput']:.2f} of the peak": found["goodput"] >= LEAST_GOODPUT,
        "nothing was refused": refusal_ms is not None,
        f"refusals take {refusal_ms} ms": (refusal_ms or 0) <= MOST_REFUSAL_MS,
        f"answers that are neither 200 nor 503: {others}": not others,
        f"requests failed: {found['overload']['failed']}": not found["overload"]["failed"],
        f"memory grows: {found['rss_slope']}": found["rss_slope"].least_growth_mb <= MOST_GROWTH_MB,
        f"afterwards it gives {found['recovered']:.2f} of the peak": found["recovered"] >= LEAST_GOODPUT,
    }
    return [fault for fault, passed in checks.items() if not passed]


def report(found: dict[str, Any]) -> str:
    """A table of the three parts, and what follows from them."""
    head = ("", "answers/s", "p50", "p99", "503", "p99 of 503", "failed", "not begun", "generator CPU")
    lines = [head]
    for part in ("before", "overload", "after"):
        row = found[part]
        lines.append(
            (
                f"{part}, {row['load']}",
                f"{row['answers_per_s']:.2f}",
                f"{row['p50_ms']:.0f} ms",
                f"{row['p99_ms']:.0f} ms",
                str(row["refused"].get("503", 0)),
                f"{row['refused_p99_ms'].get('503', 0):.1f} ms",
                str(sum(row["failed"].values())),
                str(row["not_begun"]),
                f"{row['generator_cpu_s'] / row['seconds']:.1%} of a core",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    memory = "/".join(f"{found[f'rss_{at}_mb']:.0f}" for at in ("before", "peak", "after"))
    return "\n".join(
        [
            *rows,
            f"goodput/peak {found['goodput']:.3f}, the generator left out; as measured "
            f"{found['goodput_as_measured']:.3f}; afterwards {found['recovered']:.3f} of the peak",
            f"RSS before/peak/after {memory} MB; under overload {found['rss_slope']}",
        ]
    )


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument(
        "--seconds", type=float, default=60, help="of overload; the peaks take half of it each"
    )
    words.add_argument("--relu", type=int, default=-1, help="which one, in graph order")
    words.add_argument("--check", action="store_true", help="exit with 1 where a bound is broken")
    words.add_argument("options", nargs="*", help="of featuremaps serve, after --")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), given.seconds, *given.options, relu=given.relu)
    print(report(found), flush=True)
    wrong = faults(found)
    for fault in wrong:
        print(f"out of bounds: {fault}", flush=True)
    return 1 if given.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
