"""The service on Ray under load, told as one line of JSON; run by Ray's Python where there is only loopback.

`ray_afternoon.py FOLDER kill` kills one of two replicas by its pid amid the load; `ray_afternoon.py FOLDER
refuse` asks for more at once than one with a short queue takes, and for what is not passed on;
`ray_afternoon.py FOLDER 2` counts the answers a second of two.
"""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray import serve

PORT = 18265
URL = f"http://127.0.0.1:{PORT}/v1/models/cifar-resnet/features"
CLIENTS = 8
QUERY = "layers=stages&pool=avg"
KINDS = {"service": b":Service", "door": b":Door", "proxy": b"ProxyActor"}


def start(folder: str, replicas: int, **queue: int) -> None:
    os.environ |= {"RAY_MIN_REPLICAS": str(replicas), "RAY_MAX_REPLICAS": str(replicas)}
    os.environ |= {
        "FEATUREMAPS_ALLOW_ANONYMOUS": "true",
        "FEATUREMAPS_IMAGE_STORE": f"{folder}/images.sqlite3",
    }
    ray.init(
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        include_dashboard=False,
        num_cpus=max(2, replicas),
        object_store_memory=200 << 20,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    from deploy.ray.application import Door, Service, application

    shipped = Door.bind(Service.options(**queue).bind()) if queue else application
    serve.run(shipped, logging_config={"enable_access_log": False})


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
    titles = {int(file.parent.name): file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline")}
    return [
        pid
        for pid, title in titles.items()
        if title.startswith(b"ray::ServeReplica") and b":Service" in title
    ]


async def load(seconds: float, query: str, picture: bytes, during: Any = None) -> dict[str, Any]:
    """Clients that each wait for their answer; every status, and how many bytes were not as expected."""
    statuses: dict[str, int] = {}
    end = time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            try:
                async with session.post(f"{URL}?{query}", data=picture) as answer:
                    whole = len(await answer.read())
                    status = f"{answer.status}" if whole else "empty"
            except aiohttp.ClientError as error:
                status = type(error).__name__
            statuses[status] = statuses.get(status, 0) + 1

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        tasks = [asyncio.create_task(client(session)) for _ in range(CLIENTS)]
        if during is not None:
            await asyncio.sleep(seconds / 3)
            during()
        await asyncio.gather(*tasks)
    return {"statuses": statuses, "a_second": statuses.get("200", 0) / (time.monotonic() - end + seconds)}


async def refusals(picture: bytes) -> dict[str, Any]:
    """What is said to a crowd that comes at once, and to who uploads a model."""

    async def ask(method: str, url: str, body: bytes) -> tuple[int, str | None, str]:
        async with session.request(method, url, data=body) as answer:
            is_problem = answer.content_type == "application/problem+json"
            problem = await answer.json(content_type=None) if is_problem else {}
            return answer.status, answer.headers.get("Retry-After"), problem.get("detail", "")

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session:
        crowd = await asyncio.gather(*[ask("POST", f"{URL}?layers=stages", picture) for _ in range(32)])
        upload = await ask("PUT", f"http://127.0.0.1:{PORT}/v1/models/more/versions/1", bytes(100))
    return {"crowd": crowd, "upload": upload}


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
        return asyncio.run(refusals(picture))
    start(folder, int(what))
    asyncio.run(load(3, QUERY, picture))
    before = cpu_seconds()
    told = asyncio.run(load(20, QUERY, picture))
    answers = told["statuses"]["200"]
    used = {kind: round(1000 * (s - before[kind]) / answers, 2) for kind, s in cpu_seconds().items()}
    return {**told, "cpu_ms_an_answer": used}


if __name__ == "__main__":
    try:
        print("TOLD", json.dumps(main(*sys.argv[1:])), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()
