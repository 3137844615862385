"""FastAPI by hand, done well: raw bytes both ways, a pool of threads for the jobs."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.job import JOBS, PORT, WORKERS, Job


@asynccontextmanager
async def start(app: FastAPI) -> AsyncIterator[None]:
    """In the worker, not in the process that starts the workers."""
    app.state.job, app.state.pool = Job(), ThreadPoolExecutor(int(JOBS))
    yield


app = FastAPI(lifespan=start)


@app.post("/predict")
async def predict(request: Request, layer: str) -> Response:
    image, loop = await request.body(), asyncio.get_running_loop()
    answer = await loop.run_in_executor(app.state.pool, app.state.job.answer, image, layer)
    return Response(answer, media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.peers.with_fastapi:app",
        host="127.0.0.1",
        port=int(PORT),
        workers=int(WORKERS),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
