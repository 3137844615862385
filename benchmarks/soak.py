"""Everything at once for as long as one likes, and whether memory grows: `python -m benchmarks.soak`.

A number of clients, each of which picks what it does next from the table MIX, with slow readers and with
callers who leave at the worst moments. Every connection is a fresh one, read and left by hand, since
HTTP libraries do not misbehave on demand. Memory is read once a second, and, since it goes up and down with
what is under way, also at rest: the load comes in rounds, and after each there is a moment with none.
A quarter of the time warms up. With `--apart` one kind after another is asked alone, and what each request
leaves behind is told: what a mix hides.
"""

import argparse
import asyncio
import hashlib
import io
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import psutil

from benchmarks.memory import MB, Slope, sampled, slope
from service.pipeline.work import REST_AFTER_S
from tests.builders import encoded, photograph
from tests.servers import Server, serving

Manner = Literal["reads", "reads 1 MB/s", "leaves sending", "leaves waiting", "leaves reading"]
LEFT = 0
BUSY = 503
KEEP = "keep an image"
SLOW_BYTES_PER_S = 1_000_000
WAIT_S = 120.0
LAST_BITS = 2e-5
ROUNDS, SHORTEST_ROUND_S, LONGEST_ROUND_S = 8, 10.0, 60.0
# Of one kind alone; the first round warms up.
ROUNDS_APART, ROUND_APART_S = 4, 5.0
# Until what was freed has been given back.
REST_S = REST_AFTER_S + 1.5
IMAGES = [encoded(photograph(500, 375, seed=seed), quality=96) for seed in range(4)]
KEPT = [hashlib.sha256(image).hexdigest() for image in IMAGES]
FEATURES = "POST /v1/models/cifar-resnet/features"
NUMBERS = f"{FEATURES}/json"
RENDER = "POST /v1/models/cifar-resnet/render"
STATISTICS = "POST /v1/models/cifar-resnet/statistics"
KEPT_IMAGE, MODEL = "GET /v1/images/{id}", "model=cifar-resnet"


@dataclass(frozen=True)
class Kind:
    """One line of the mix: its share of all requests, what is asked, and what should come of it."""

    name: str
    share: int
    what: str
    query: str = ""
    status: int = 200
    manner: Manner = "reads"
    coding: str = "identity"
    body: bytes | None = None


# fmt: off
MIX = (
    #    what it is                  share
    Kind("1 MB npy",                    16, FEATURES, "layers=stage:0&format=npy&size=96x96"),
    Kind("1 MB npz, deflated",           3, FEATURES, "layers=stage:0&compress=deflate&size=96x96"),
    Kind("8 MB safetensors",             8, FEATURES, "layers=stage:0&format=safetensors&size=256x256"),
    Kind("8 MB npz, zstd",               6, FEATURES, "layers=stage:0&size=256x256", coding="zstd"),
    Kind("15 MB arrow, all stages",      3, FEATURES, "layers=stages&format=arrow&size=256x256"),
    Kind("34 MB npy",                    2, FEATURES, "layers=stage:0&format=npy&size=512x512"),
    Kind("50 MB npy",                    1, FEATURES, "layers=stage:0&format=npy&size=624x624"),
    Kind("deep, uint8, gzip",            8, FEATURES, "layers=stage:-1&dtype=uint8", coding="gzip"),
    Kind("numbers as JSON",              4, NUMBERS, "layers=stage:-1&pool=avg"),
    Kind("statistics",                   5, STATISTICS, "layers=stages"),
    Kind("grid picture",                 5, RENDER, "layer=stage:0"),
    Kind("overlay picture, webp",        4, RENDER, "layer=stage:-1&style=overlay&format=webp"),
    Kind(KEEP,                           6, "POST /v1/images"),
    Kind("kept image's maps",            8, f"{KEPT_IMAGE}/features", f"{MODEL}&layers=stages"),
    Kind("kept image's picture",         6, f"{KEPT_IMAGE}/render", f"{MODEL}&layer=stage:0&style=heatmap"),
    Kind("kept image's statistics",      4, f"{KEPT_IMAGE}/statistics", MODEL),
    Kind("list of layers",               4, "GET /v1/models/cifar-resnet/layers"),
    Kind("no such layer",                3, FEATURES, "layers=absent", 404),
    Kind("no such parameter",            2, FEATURES, "layer=stem.relu", 422),
    Kind("no image",                     2, FEATURES, "", 415, body=b"hello"),
    Kind("half a JPEG",                  2, FEATURES, "", 422, body=IMAGES[0][:5000]),
    Kind("1 MB, slow reader",            3, FEATURES, "layers=stage:0&size=96x96", manner="reads 1 MB/s"),
    Kind("8 MB, slow reader",            2, FEATURES, "layers=stage:0&size=256x256", manner="reads 1 MB/s"),
    Kind("leaves while sending",         4, FEATURES, "", LEFT, manner="leaves sending"),
    Kind("leaves while waiting",         4, FEATURES, "size=256x256", LEFT, manner="leaves waiting"),
    Kind("leaves while reading 8 MB",    4, FEATURES, "size=256x256", LEFT, manner="leaves reading"),
)
# fmt: on


@dataclass
class Found:
    """What came of it: how often each kind had which status, bytes read, what should not have been."""

    counts: dict[str, Counter[int]] = field(default_factory=lambda: {kind.name: Counter() for kind in MIX})
    size: int = 0
    surprises: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)
    rests: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    same_afterwards: bool = False

    @property
    def slope(self) -> Slope:
        """Of the server's memory under load, after the warm-up."""
        return slope(self.memory)

    @property
    def slope_at_rest(self) -> Slope:
        """Of what it holds when nothing is under way: far less noise."""
        return slope(self.rests)

    def add(self, kind: Kind, status: int, size: int) -> None:
        """Count one; a full service may say so to anybody."""
        self.counts[kind.name][status] += 1
        self.size += size
        created = status == 201 and kind.name == KEEP
        if status not in (kind.status, BUSY) and not created:
            self.surprises[f"{kind.name}: {status}"] += 1


class Caller:
    """Asks one server, one fresh connection a request."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._at = (host, int(port))

    async def ask(self, kind: Kind, image: int) -> tuple[int, int]:
        """The status, or LEFT, and the bytes of the answer.

        Raises:
            OSError, EOFError, TimeoutError: the answer is not whole, or there is none.
        """
        reader, writer = await self._connect(narrow=kind.manner == "reads 1 MB/s")
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._exchange(kind, image, reader, writer)
        finally:
            writer.transport.abort()

    async def _connect(self, *, narrow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket()
        connection.setblocking(False)
        if narrow:
            # Else the kernel takes megabytes for a reader that is slow.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        await asyncio.get_running_loop().sock_connect(connection, self._at)
        return await asyncio.open_connection(sock=connection, limit=1 << 18)

    async def _exchange(
        self, kind: Kind, image: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, int]:
        head, body = _message(kind, image)
        writer.write(head + (body[: len(body) // 2] if kind.manner == "leaves sending" else body))
        await writer.drain()
        if kind.manner in ("leaves sending", "leaves waiting"):
            await asyncio.sleep(0.02)
            return LEFT, 0
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        status = int(lines[0].split()[1])
        announced = next(int(x.partition(":")[2]) for x in lines if x.startswith("content-length:"))
        if kind.manner == "leaves reading" and status == 200:
            return LEFT, len(await reader.read(1 << 16))
        return status, await _read(reader, announced, slowly=kind.manner == "reads 1 MB/s")


async def _read(reader: asyncio.StreamReader, announced: int, *, slowly: bool) -> int:
    size, begun = 0, time.monotonic()
    while size < announced:
        piece = await reader.read(1 << 16)
        if not piece:
            raise EOFError(f"{size} of {announced} bytes")
        size += len(piece)
        if slowly:
            await asyncio.sleep(max(begun + size / SLOW_BYTES_PER_S - time.monotonic(), 0))
    return size


def _message(kind: Kind, image: int) -> tuple[bytes, bytes]:
    method, _, path = kind.what.partition(" ")
    body = b"" if method == "GET" else IMAGES[image] if kind.body is None else kind.body
    head = (
        f"{method} {path.replace('{id}', KEPT[image])}?{kind.query} HTTP/1.1\r\n"
        "Host: soak\r\nConnection: close\r\n"
        f"Accept-Encoding: {kind.coding}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


async def soak(url: str, found: Found, seconds: float, clients: int) -> None:
    """Keep so many clients busy in rounds that take so long together, with a rest after each."""
    caller, end = Caller(url), time.monotonic() + seconds
    for image in range(len(IMAGES)):
        await caller.ask(_kind(KEEP), image)
    choices = [random.Random(number) for number in range(clients)]
    round_s = min(max(seconds / ROUNDS, SHORTEST_ROUND_S), LONGEST_ROUND_S, seconds)
    while (left := end - time.monotonic()) > round_s / 2:
        until = time.monotonic() + min(round_s, left)
        await asyncio.gather(*(_client(caller, choose, found, until) for choose in choices))
        await asyncio.sleep(REST_S)
        found.rests.append(found.memory[-1])


async def _client(
    caller: Caller, choose: random.Random, found: Found, until: float, mix: Sequence[Kind] = MIX
) -> None:
    while time.monotonic() < until:
        (kind,) = choose.choices(mix, [kind.share for kind in mix])
        try:
            found.add(kind, *await caller.ask(kind, choose.randrange(len(IMAGES))))
        except (OSError, EOFError, TimeoutError) as error:
            found.surprises[f"{kind.name}: {type(error).__name__}"] += 1


async def left_behind(server: Server, kind: Kind, clients: int) -> tuple[Found, float]:
    """What came of one kind alone after the first round, and bytes that each request left at rest."""
    caller, process = Caller(server.url), psutil.Process(server.pid)
    choices, found, rests = [random.Random(number) for number in range(clients)], Found(), []
    for number in range(ROUNDS_APART):
        until, found = time.monotonic() + ROUND_APART_S, found if number > 1 else Found()
        await asyncio.gather(*(_client(caller, choose, found, until, [kind]) for choose in choices))
        await asyncio.sleep(REST_S)
        rests.append(process.memory_info().rss)
    return found, (rests[-1] - rests[0]) / max(found.counts[kind.name].total(), 1)


def report_apart(clients: int, *options: str) -> Iterator[str]:
    """A line a kind, as they come."""
    with serving("--log-level", "warning", *options) as server:
        warming = Found()
        with sampled(server.pid) as warming.memory:
            asyncio.run(soak(server.url, warming, SHORTEST_ROUND_S, clients))
        for kind in MIX:
            found, size = asyncio.run(left_behind(server, kind, clients))
            times = found.counts[kind.name].total()
            surprises = dict(found.surprises) or ""
            yield f"{kind.name:28}{times:>7} requests {size:>9.0f} bytes left by each {surprises}".rstrip()


def _kind(name: str) -> Kind:
    return next(kind for kind in MIX if kind.name == name)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether maps are equal but for last bits, which change where layers asked for often are fused."""
    return one.keys() == other.keys() and all(
        np.allclose(one[name], other[name], rtol=0, atol=LAST_BITS * np.abs(one[name]).max()) for name in one
    )


def measure(seconds: float, clients: int = 8, *options: str, told: Callable[[str], None] = print) -> Found:
    """Soak a service of its own with the bundled model; the last rounds may end a little late."""
    found = Found()
    with serving("--log-level", "warning", *options) as server, server.client() as checking:

        def answer() -> dict[str, np.ndarray]:
            url = "/v1/models/cifar-resnet/features?layers=stages"
            content = checking.post(url, content=IMAGES[0]).raise_for_status().content
            return dict(np.load(io.BytesIO(content)))

        before, begun = answer(), time.monotonic()
        with sampled(server.pid) as found.memory:
            asyncio.run(soak(server.url, found, seconds, clients))
        found.seconds = time.monotonic() - begun
        found.same_afterwards = same(before, answer())
        told("".join(server.log[1:])[-2000:])
    return found


def report(found: Found) -> str:
    """How often each kind came to which end, and what memory did."""
    lines = [f"{'what':28}{'share':>6}{'times':>7}  ends"]
    for kind in MIX:
        ends = ", ".join(
            f"{count} x {'left' if status == LEFT else status}"
            for status, count in sorted(found.counts[kind.name].items())
        )
        lines.append(f"{kind.name:28}{kind.share:>6}{found.counts[kind.name].total():>7}  {ends}")
    total = sum(counts.total() for counts in found.counts.values())
    mb = [value / MB for _, value in found.memory]
    return "\n".join(
        [
            *lines,
            f"{total} requests and {found.size / MB:.0f} MB read in {found.seconds:.0f} s",
            f"RSS {mb[0]:.0f} MB at first, {max(mb):.0f} at most, {mb[-1]:.0f} at last",
            f"under load {found.slope}",
            f"at rest    {found.slope_at_rest}",
            f"surprises: {dict(found.surprises) or 'none'}; "
            f"the same answer afterwards: {'yes' if found.same_afterwards else 'NO'}",
        ]
    )


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--minutes", type=float, default=30)
    words.add_argument("--clients", type=int, default=8)
    words.add_argument("--apart", action="store_true", help="one kind after another; twenty minutes")
    words.add_argument("options", nargs="*", help="of featuremaps serve, after --")
    given = words.parse_args()
    if given.apart:
        for line in report_apart(given.clients, *given.options):
            print(line, flush=True)
        return 0
    print(report(measure(given.minutes * 60, given.clients, *given.options)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
