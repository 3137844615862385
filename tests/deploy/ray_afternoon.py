"""The service on Ray under load, told as one line of JSON; run by Ray's Python where there is only loopback.

`ray_afternoon.py FOLDER kill` kills one of two replicas by its pid amid the load; `lose` kills the only one
while it computes; `refuse` asks for more at once than one with a short queue takes; `ask` sends those in
`requests.json`; `limits` sends what the service refuses; `2` counts the answers a second of two.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray import serve

PORT = 18265
ORIGIN = f"http://127.0.0.1:{PORT}"
URL = f"{ORIGIN}/v1/models/cifar-resnet/features"
CLIENTS = 8
QUERY = "layers=stages&pool=avg"
KINDS = {"service": b":Service", "proxy": b"ProxyActor"}
BODY_MB = 300
# Takes seconds.
SLOW = "layers=stage:-1&pool=avg&size=1024x1024"


def start(folder: str, replicas: int, **queue: int) -> None:
    os.environ |= {"RAY_MIN_REPLICAS": str(replicas), "RAY_MAX_REPLICAS": str(replicas)}
    os.environ |= {"FEATUREMAPS_IMAGE_STORE": f"{folder}/images.sqlite3"}
    if "FEATUREMAPS_KEYS" not in os.environ:
        os.environ |= {"FEATUREMAPS_ALLOW_ANONYMOUS": "true"}
    ray.init(
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        include_dashboard=False,
        num_cpus=max(2, replicas),
        object_store_memory=200 << 20,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    from deploy.ray.application import Service

    serve.run(Service.options(**queue).bind(), logging_config={"enable_access_log": False})


def cpu_seconds() -> dict[str, float]:
    """CPU time so far of each kind of Ray's processes."""
    used = dict.fromkeys(KINDS, 0.0)
    for kind, title in KINDS.items():
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if title in file.read_bytes():
                    fields = file.with_name("stat").read_text().rpartition(")")[2].split()
                    used[kind] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def replicas() -> list[int]:
    """Pids of the processes that hold a replica of the service."""
    return pids(b"ray::ServeReplica")


def pids(title: bytes) -> list[int]:
    """Of this process's descendants with such a title: those of an earlier Ray may not have ended yet."""
    parents: dict[int, int] = {}
    titles: dict[int, bytes] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has ended meanwhile.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()

    def descends(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and descends(parents[pid]))

    return [pid for pid, found in titles.items() if found.startswith(title) and descends(pid)]


async def load(seconds: float, query: str, picture: bytes, during: Any = None) -> dict[str, Any]:
    """Clients that each wait for their answer; every status, and seconds of the slowest that was not 200."""
    statuses: dict[str, int] = {}
    slowest = 0.0
    end = time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal slowest
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                async with session.post(f"{URL}?{query}", data=picture) as answer:
                    whole = len(await answer.read())
                    status = f"{answer.status}" if whole else "empty"
            except aiohttp.ClientError as error:
                status = type(error).__name__
            statuses[status] = statuses.get(status, 0) + 1
            slowest = max(slowest, 0.0 if status == "200" else time.monotonic() - start)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        tasks = [asyncio.create_task(client(session)) for _ in range(CLIENTS)]
        if during is not None:
            await asyncio.sleep(seconds / 3)
            during()
        await asyncio.gather(*tasks)
    rate = statuses.get("200", 0) / (time.monotonic() - end + seconds)
    return {"statuses": statuses, "slowest_failure_s": slowest, "a_second": rate}


async def crowd(picture: bytes) -> list[tuple[int, str | None]]:
    """Status and `Retry-After` of 32 requests at once."""

    async def ask() -> tuple[int, str | None]:
        async with session.post(f"{URL}?layers=stages", data=picture) as answer:
            await answer.read()
            return answer.status, answer.headers.get("Retry-After")

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        return await asyncio.gather(*[ask() for _ in range(32)])


async def answers(requests: list[dict[str, Any]], picture: bytes) -> list[dict[str, Any]]:
    """Status, headers and digest of the body of each request."""
    found = []
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for each in requests:
            body = picture * each["pictures"] or None
            given = {"data": body, "headers": each["headers"], "allow_redirects": False}
            async with session.request(each["method"], ORIGIN + each["path"], **given) as answer:
                headers = sorted([name.lower(), value] for name, value in answer.headers.items())
                digest = hashlib.sha256(await answer.read()).hexdigest()
                found.append({"status": answer.status, "headers": headers, "sha256": digest})
    return found


async def lost(picture: bytes) -> dict[str, Any]:
    """What a client gets whose replica dies while it computes, and the next one's metrics after an answer."""
    (doomed,) = replicas()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        before = cpu_seconds()["service"]
        asking = asyncio.create_task(session.post(f"{URL}?{SLOW}", data=picture))
        while cpu_seconds()["service"] < before + 0.5:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        killed = time.monotonic()
        os.kill(doomed, signal.SIGKILL)
        async with await asking as failed:
            await failed.read()
            told = {"status": failed.status, "seconds": time.monotonic() - killed}
        while replicas() in ([doomed], []):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        async with session.post(f"{URL}?{QUERY}", data=picture) as later:
            await later.read()
        async with session.get(f"{ORIGIN}/metrics") as metrics:
            return {**told, "later": later.status, "metrics": await metrics.text()}


async def unlimited() -> dict[str, Any]:
    """How Ray's proxy treats heads that the service refuses (431, 408), and a body before the 413."""
    large = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 300_000 + b"\r\n\r\n"
    slow = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
    (proxy,) = pids(b"ray::ProxyActor")
    before = peak_mb(proxy)
    # The service waits for what was announced, so that the proxy has time to hold all that comes.
    async with aiohttp.ClientSession() as session, session.post(URL, data=chunks(BODY_MB)) as answer:
        status = answer.status
    return {
        "large": await first_line(large),
        "slow": await first_line(slow),
        "body": status,
        "held_mb": peak_mb(proxy) - before,
    }


async def chunks(count: int) -> AsyncIterator[bytes]:
    """So many MB, chunked."""
    for _ in range(count):
        yield bytes(1_000_000)


async def first_line(request: bytes) -> str:
    """The answer's first line, or "waits" where none comes in eight seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(request)
    try:
        async with asyncio.timeout(8):
            return (await reader.readline()).decode().strip()
    except TimeoutError:
        return "waits"
    finally:
        writer.close()


def peak_mb(pid: int) -> float:
    """The most memory that a process has had, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM:"))


def main(folder: str, what: str) -> dict[str, Any]:
    picture = Path(folder, "picture.jpg").read_bytes()
    if what == "kill":
        start(folder, 2)
        before = replicas()
        told = asyncio.run(load(12, "layers=stages", picture, lambda: os.kill(before[0], signal.SIGKILL)))
        end = time.monotonic() + 60
        while len(replicas()) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        return {**told, "before": before, "after": replicas()}
    if what == "refuse":
        start(folder, 1, max_ongoing_requests=1, max_queued_requests=1)
        return {"crowd": asyncio.run(crowd(picture))}
    if what in ("ask", "lose", "limits"):
        start(folder, 1)
        if what == "lose":
            return asyncio.run(lost(picture))
        if what == "limits":
            return asyncio.run(unlimited())
        requests = json.loads(Path(folder, "requests.json").read_text())
        return {"answers": asyncio.run(answers(requests, picture))}
    start(folder, int(what))
    asyncio.run(load(3, QUERY, picture))
    before = cpu_seconds()
    told = asyncio.run(load(20, QUERY, picture))
    answered = told["statuses"]["200"]
    used = {kind: round(1000 * (s - before[kind]) / answered, 2) for kind, s in cpu_seconds().items()}
    return {**told, "cpu_ms_an_answer": used}


if __name__ == "__main__":
    try:
        print("TOLD", json.dumps(main(*sys.argv[1:])), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()
