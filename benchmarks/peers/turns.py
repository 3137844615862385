"""featuremaps and a peer on a graph cut by hand, both up, in turns: `python -m benchmarks.peers.turns`.

The machine's pace wanders by a tenth within minutes, more than what lies between the two. So each load of
one is set against the other's right beside it, and the median of these ratios counts.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.peers.__main__ import WARM_S, Bench
from benchmarks.peers.entrants import OURSELVES, POSITIONS, chosen
from benchmarks.peers.load import load
from benchmarks.peers.processes import Server, cpu_seconds, ourselves, settle, started

CLIENTS = 8


def turns(bench: Bench, peer_name: str, depth: str, rounds: int, seconds: float) -> str:
    """A line: answers a second and CPU milliseconds of each, and the ratio of the rates."""
    (peer,) = [peer for peer in chosen([peer_name]) if peer.name == peer_name]
    layer, image = bench.layers[depth], bench.image
    them = started(peer, bench.graph("cut", depth), layer, image, False)
    with ourselves(bench.models, layer, image, False) as we, them as they:
        for server in (we, they):
            load(server.url, bench.images, CLIENTS, WARM_S)
            settle(server)
        pairs = [
            [one_turn(bench, server, seconds) for server in ((we, they) if number % 2 else (they, we))]
            for number in range(rounds)
        ]
    ordered = [pair if number % 2 else pair[::-1] for number, pair in enumerate(pairs)]
    (our_rate, our_cpu), (their_rate, their_cpu) = (
        [median(column) for column in zip(*side, strict=True)] for side in zip(*ordered, strict=True)
    )
    ratio = median(ours[0] / theirs[0] for ours, theirs in ordered)
    return (
        f"{depth}: {OURSELVES} {our_rate:.1f} a second, {our_cpu:.1f} ms CPU; "
        f"{peer_name} cut {their_rate:.1f}, {their_cpu:.1f}; ratio {ratio:.3f}"
    )


def one_turn(bench: Bench, server: Server, seconds: float) -> tuple[float, float]:
    """Answers a second, CPU milliseconds an answer."""
    processes = server.tree()
    before = cpu_seconds(processes)
    found = load(server.url, bench.images, CLIENTS, seconds)
    used = cpu_seconds(processes) - before
    settle(server)
    return found.rate, used / found.answers * 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.turns", description=__doc__)
    parser.add_argument("--peer", default="fastapi-b")
    parser.add_argument("--rounds", type=int, default=18)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), options)
        for depth in POSITIONS:
            line = turns(bench, options.peer, depth, options.rounds, options.seconds)
            print(line, flush=True)


if __name__ == "__main__":
    main()
