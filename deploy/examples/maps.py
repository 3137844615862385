"""With httpx: list layers, get feature maps as arrays and as a picture, and read a refusal.

Usage: python maps.py URL PHOTOGRAPH FOLDER
"""

import io
import sys
from pathlib import Path

import httpx
import numpy as np

LAYER = "stage1.block2.relu"


def main(url: str, photograph: Path, folder: Path) -> None:
    with httpx.Client(base_url=f"{url}/v1/models/cifar-resnet", timeout=60) as client:
        for layer in client.get("/layers", params={"layers": "stages"}).json()["layers"]:
            print(layer["name"], layer["shape"])

        body = photograph.read_bytes()
        answer = client.post("/features", params={"layers": LAYER}, content=body).raise_for_status()
        maps = np.load(io.BytesIO(answer.content))
        np.save(folder / "sent.npy", maps[LAYER])

        drawn = client.post("/render", params={"layer": LAYER, "colormap": "viridis"}, content=body)
        (folder / "map.png").write_bytes(drawn.raise_for_status().content)

        refused = client.post("/features", params={"layers": "stage1.block2.rellu"}, content=body)
        problem = refused.json()
        print(problem["status"], problem["code"], problem["suggestions"][0])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
