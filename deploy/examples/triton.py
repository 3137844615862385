"""With tritonclient: send a photograph as it is, and ask for any layer by its name.

Usage: python triton.py URL PHOTOGRAPH FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

MODEL, LAYER = "cifar-resnet", "stage1.block2.relu"


def main(url: str, photograph: Path, folder: Path) -> None:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        name = client.get_model_metadata(MODEL)["inputs"][0]["name"]
        image = triton.InferInput(name, [1], "BYTES")
        image.set_data_from_numpy(np.array([photograph.read_bytes()], object))
        answer = client.infer(MODEL, [image], outputs=[triton.InferRequestedOutput(LAYER)])
        np.save(folder / "sent.npy", answer.as_numpy(LAYER))
        try:
            client.infer(MODEL, [image], outputs=[triton.InferRequestedOutput("stage1.block2.rellu")])
        except triton.InferenceServerException as refused:
            print(refused.message())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
