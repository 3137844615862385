"""LitServe: its queue of ZeroMQ, one inference process a core, as its performance guide says.

The request is read by a dependency of FastAPI, which LitServe hands its type on to: raw bytes need no
multipart parser, and a queue carries bytes and a name rather than a whole request.
"""

from typing import Annotated

import litserve
from fastapi import Depends, Request, Response

from benchmarks.peers.job import PORT, WORKERS, Job


async def read(request: Request) -> tuple[bytes, str]:
    return await request.body(), request.query_params["layer"]


class Maps(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.job = Job()

    def decode_request(self, request: Annotated[tuple[bytes, str], Depends(read)]) -> tuple[bytes, str]:
        return request

    def predict(self, x: tuple[bytes, str]) -> bytes:
        return self.job.answer(*x)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Maps(), accelerator="cpu", workers_per_device=int(WORKERS), fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(PORT), log_level="warning", access_log=False, generate_client_file=False
    )
