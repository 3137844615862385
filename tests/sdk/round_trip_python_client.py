"""The round trip with the client of openapi-python-client: URL PHOTOGRAPH FOLDER."""

import io
import json
import sys
from pathlib import Path

from generated import Client
from generated.api.feature_maps import extract_features
from generated.api.images import create_image, get_image_features, get_image_picture
from generated.api.models import list_layers
from generated.models import ArrayFormatName, ImageDescription, LayerList, Problem
from generated.types import File

MODEL, LAYER = "cifar-resnet", "stage1.block2.relu"


def write(path: Path, answer: object) -> None:
    assert isinstance(answer, File), answer
    path.write_bytes(answer.payload.read())


def main(url: str, photograph: Path, folder: Path) -> None:
    client = Client(base_url=url, timeout=120)
    photo = photograph.read_bytes()
    layers = list_layers.sync(MODEL, client=client)
    image = create_image.sync(client=client, body=File(payload=io.BytesIO(photo)))
    assert isinstance(layers, LayerList)
    assert isinstance(image, ImageDescription)
    asked = {"client": client, "layers": [LAYER], "format_": ArrayFormatName.NPY}
    write(folder / "kept.npy", get_image_features.sync(image.id, model=MODEL, **asked))
    write(folder / "sent.npy", extract_features.sync(MODEL, body=File(payload=io.BytesIO(photo)), **asked))
    write(
        folder / "map.png",
        get_image_picture.sync(image.id, model=MODEL, layer=LAYER, colormap="viridis", client=client),
    )
    problem = get_image_features.sync(image.id, model=MODEL, layers=["stage1.block2.rellu"], client=client)
    assert isinstance(problem, Problem)
    told = {"status": problem.status, "code": problem.code.value, "suggestions": problem.suggestions}
    print(json.dumps({"layers": [layer.name for layer in layers.layers], "problem": told}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
