"""The job every peer does for a request: a JPEG in, one layer of ResNet-50 as `.npy` out."""

import io
import os

import numpy as np
import onnxruntime as ort
from PIL import Image

INPUT = "gpu_0/data_0"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
# How the runner tells a peer what to serve and where; each peer is started with all of them.
MODEL = os.environ.get("PEER_MODEL", "")
PORT = os.environ.get("PEER_PORT", "")
WORKERS = os.environ.get("PEER_WORKERS", "")
JOBS = os.environ.get("PEER_JOBS", "")


def prepared(image: bytes) -> np.ndarray:
    """Short side 256, centre 224, mean and deviation of ImageNet."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    short = 256 / min(picture.size)
    size = int(picture.width * short), int(picture.height * short)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = round((picture.width - 224) / 2), round((picture.height - 224) / 2)
    x = (np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


class Job:
    """A session on one graph, one thread inside it: answers run side by side instead."""

    def __init__(self, file: str = MODEL) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(file, options, ["CPUExecutionProvider"])

    def answer(self, image: bytes, layer: str) -> bytes:
        values = self.session.run([layer], {INPUT: prepared(image)})[0]
        stream = io.BytesIO()
        np.save(stream, values)
        return stream.getvalue()
