"""featuremaps beside what else serves such a network: `python -m benchmarks.peers --help`.

Every peer does the same job: once with every layer an output of the whole graph, the layer asked for in
the request, and once on a graph cut by hand to the one layer.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import psutil

from benchmarks.early import jpeg, repository
from benchmarks.peers.entrants import OURSELVES, POSITIONS, Peer, chosen
from benchmarks.peers.load import Load, client_name, load
from benchmarks.peers.processes import (
    KEPT_MEMORY,
    QUIET,
    ROOT,
    Server,
    cpu_seconds,
    memory_mb,
    ourselves,
    python,
    settle,
    started,
)
from benchmarks.peers.tables import Row, ratios, table
from benchmarks.resnet import INPUT, relus
from tests.builders import encoded, photograph

CLOSE = 1e-4
# Also until the session is built that a layer gets when it is asked often.
WARM_S = 4.0
FRESH_S = 2.0
PICTURES = 8


class Bench:
    """The graphs, the picture and the right answers, in a scratch folder."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.options = options
        self.models = folder / "models"
        self.images = [folder / f"{number}.jpg" for number in range(PICTURES)]
        for number, file in enumerate(self.images):
            file.write_bytes(
                jpeg() if not number else encoded(photograph(500, 375, seed=number + 1), "JPEG", quality=96)
            )
        self.image = self.images[0].read_bytes()
        self.latest: dict[str, tuple[float, Row]] = {}
        whole = repository(self.models)
        names = relus(whole)
        self.layers = {depth: names[position] for depth, position in POSITIONS.items()}
        model = onnx.shape_inference.infer_shapes(onnx.load(whole))
        extractor = onnx.utils.Extractor(model)
        outputs = [output.name for output in model.graph.output]
        self.graphs = {"exposed": folder / "exposed.onnx"}
        onnx.save(extractor.extract_model([INPUT], [*names, *outputs]), self.graphs["exposed"])
        for depth, name in self.layers.items():
            self.graphs[depth] = folder / f"{depth}.onnx"
            onnx.save(extractor.extract_model([INPUT], [name]), self.graphs[depth])

    def graph(self, kind: str, depth: str) -> Path:
        return self.graphs["exposed" if kind == "exposed" else depth]

    def right(self, depth: str) -> np.ndarray:
        from benchmarks.peers.job import Job

        job = Job(str(self.graphs[depth]))
        return np.load(BytesIO(job.answer(self.image, self.layers[depth])))

    def bare(self, kind: str, depth: str) -> Row:
        """The limit: the job in a loop, in a process of its own whose allocator is told to keep memory."""
        command = [sys.executable, "-m", "benchmarks.peers.bare", str(self.graph(kind, depth))]
        command += [self.layers[depth], str(self.options.seconds), *map(str, self.images)]
        environment = {**os.environ, **QUIET, **KEPT_MEMORY}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        found = json.loads(done.stdout)
        counts = self.options.concurrency
        loads = [Load(n, 1, found["rate"], found["p50_ms"], 0, 0.0, found["cpu_ms"]) for n in counts]
        row = Row("bare", kind, depth, loads, found["bytes"], found["rss_mb"], found["pss_mb"])
        row.bare_rate, row.bare_p50_ms = found["rate"], found["p50_ms"]
        return row

    def limit(self, depth: str) -> Row:
        """Bare on the cut now; what followed one row is what comes right before the next."""
        at, row = self.latest.get(depth, (-FRESH_S, None))
        if row is None or time.monotonic() - at > FRESH_S:
            row = self.bare("cut", depth)
            self.latest[depth] = time.monotonic(), row
        return row

    def served(self, peer: Peer | None, kind: str, depth: str) -> Row:
        """The best of as many starts as the peer is given."""
        starts = peer.starts if peer else 1
        rows = [self.once(peer, kind, depth) for _ in range(starts)]
        best = max(rows, key=lambda row: row.share)
        best.starts = starts
        return best

    def once(self, peer: Peer | None, kind: str, depth: str) -> Row:
        before, layer, image = self.limit(depth), self.layers[depth], self.image
        row = Row(peer.name if peer else OURSELVES, kind, depth)
        kept = self.options.kept_memory
        if peer:
            server = started(peer, self.graph(kind, depth), layer, image, kept)
        else:
            server = ourselves(self.models, layer, image, kept)
        with server as at:
            check(at.body, self.right(depth))
            row.bytes, row.first_s = len(at.body), at.first_s
            self.loaded(at, row)
        after = self.limit(depth)
        rates = before.bare_rate, after.bare_rate
        row.bare_rate, row.bare_drift = sum(rates) / 2, 1 - min(rates) / max(rates)
        row.bare_p50_ms = (before.bare_p50_ms + after.bare_p50_ms) / 2
        return row

    def loaded(self, server: Server, row: Row) -> None:
        load(server.url, self.images, max(self.options.concurrency), WARM_S)
        settle(server)
        for concurrency in self.options.concurrency:
            processes = server.tree()
            before = cpu_seconds(processes)
            found = load(server.url, self.images, concurrency, self.options.seconds)
            found.server_cpu_ms = (cpu_seconds(processes) - before) / max(1, found.answers) * 1000
            row.loads.append(found)
            settle(server)
            if found.errors:
                raise RuntimeError(f"{found.errors} errors of {found.answers} at {concurrency} clients")
        row.rss_mb, row.pss_mb = memory_mb(server.tree())


def check(body: bytes, right: np.ndarray) -> None:
    """The answer is the bare cut's, within rounding."""
    found = np.load(BytesIO(body))
    found = found if isinstance(found, np.ndarray) else found[found.files[0]]
    worst = float(np.abs(found - right).max() / np.abs(right).max())
    if found.dtype != right.dtype or found.shape != right.shape or worst > CLOSE:
        raise RuntimeError(f"wrong answer: {found.dtype} {found.shape}, off by {worst:g}")


def measured(bench: Bench, peers: list[Peer], depths: list[str], with_us: bool) -> list[Row]:
    rows: list[Row] = []
    for depth in depths:
        cut, exposed = bench.limit(depth), bench.bare("exposed", depth)
        exposed.bare_rate, exposed.bare_p50_ms = cut.bare_rate, cut.bare_p50_ms
        rows += [cut, exposed]
        entries = [(peer, kind) for peer in peers if depth in peer.layers for kind in peer.kinds]
        for peer, kind in [*([(None, "any")] if with_us else []), *entries]:
            start = time.perf_counter()
            try:
                row = bench.served(peer, kind, depth)
            except Exception as error:  # one that fails must not cost the others
                print("".join(getattr(error, "__notes__", [])), file=sys.stderr)
                row = Row(peer.name if peer else OURSELVES, kind, depth, failed=str(error))
            rows.append(row)
            took = time.perf_counter() - start
            found = row.failed or f"{row.rate:.1f} a second, {row.share:.2f} of bare"
            print(f"{depth} {row.peer} {kind}: {found} ({took:.0f} s)", file=sys.stderr, flush=True)
    return rows


def usable(peers: list[Peer]) -> list[Peer]:
    """Without those that would listen where others reach them."""
    internet = (socket.AF_INET, socket.AF_INET6)
    addresses = psutil.net_if_addrs().items()
    if {name for name, found in addresses if any(each.family in internet for each in found)} <= {"lo"}:
        return peers
    left = [peer.name for peer in peers if peer.alone]
    if left:
        print(
            f"left out, as more than loopback is up: {', '.join(left)}; after a first run that installs, do\n"
            '  unshare --map-root-user --net sh -c "ip link set lo up; '
            f'{sys.executable} -m benchmarks.peers"',
            file=sys.stderr,
        )
    return [peer for peer in peers if not peer.alone]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    comma = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--only", default=[], help="peers by the beginning of their names", **comma)
    parser.add_argument("--layers", default=list(POSITIONS), help="of early,middle,deep", **comma)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--concurrency", default=["1", "8"], help="clients at a time", **comma)
    parser.add_argument(
        "--kept-memory", action="store_true", help="every server's malloc keeps memory, as bare's"
    )
    parser.add_argument("--install", action="store_true", help="make the virtual environments and stop")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    options.concurrency = sorted(int(each) for each in options.concurrency)
    return options


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments()
    peers = chosen(options.only)
    for peer in peers:
        python(peer.venv)
    if options.install:
        return 0
    with_us = not options.only or OURSELVES in options.only
    with tempfile.TemporaryDirectory() as scratch:
        rows = measured(Bench(Path(scratch), options), usable(peers), options.layers, with_us)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    served = [row.loads[-1].client_cpu_ms for row in rows if row.loads and row.peer != "bare"]
    most = f", at most {max(served):.2f} ms of CPU an answer" if served else ""
    print(f"Client: {client_name()}{most}. * the machine was not quiet; measure again.\n")
    print("\n".join([*table(rows), "", *ratios(rows)]))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
