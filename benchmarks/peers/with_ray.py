"""Ray Serve: replicas of one core each, the raw request in, a Starlette response out.

The dashboard and access logs are off. Its own processes listen on every interface there is, whatever it is
told, so the runner starts it only where there is none but loopback.
"""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.job import PORT, WORKERS, Job


@serve.deployment(num_replicas=int(WORKERS), ray_actor_options={"num_cpus": 1}, max_ongoing_requests=16)
class Maps:
    def __init__(self) -> None:
        self.job, self.pool = Job(), ThreadPoolExecutor(1)

    async def __call__(self, request: Request) -> Response:
        image, layer = await request.body(), request.query_params["layer"]
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self.pool, self.job.answer, image, layer)
        return Response(answer, media_type="application/octet-stream")


def main() -> None:
    ray.init(
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ["PEER_FOLDER"],
        include_dashboard=False,
        num_cpus=int(WORKERS),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(PORT)})
    serve.run(Maps.bind(), route_prefix="/predict", logging_config={"enable_access_log": False})
    threading.Event().wait()


if __name__ == "__main__":
    main()
