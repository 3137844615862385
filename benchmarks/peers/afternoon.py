"""What one writes in an afternoon: every layer exposed, `savez_compressed`, all of it on the event loop.

onnxruntime and uvicorn run as they come.
"""

import io

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.job import INPUT, MODEL, PORT, prepared

app = FastAPI()
session = ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])


@app.post("/predict")
async def predict(request: Request, layer: str) -> Response:
    values = session.run([layer], {INPUT: prepared(await request.body())})[0]
    stream = io.BytesIO()
    np.savez_compressed(stream, values)
    return Response(stream.getvalue(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(PORT), log_level="warning")
