"""The round trip with the Python client of openapi-generator: URL PHOTOGRAPH FOLDER."""

import json
import sys
from pathlib import Path

from generated import ApiClient, Configuration
from generated.api import FeatureMapsApi, ImagesApi, ModelsApi
from generated.exceptions import NotFoundException
from generated.models import ArrayFormatName, Problem

MODEL, LAYER = "cifar-resnet", "stage1.block2.relu"


def main(url: str, photograph: Path, folder: Path) -> None:
    with ApiClient(Configuration(host=url)) as client:
        layers = ModelsApi(client).list_layers(MODEL).layers
        images = ImagesApi(client)
        image = images.create_image(body=photograph.read_bytes())
        asked = {"layers": [LAYER], "format": ArrayFormatName.NPY}
        kept = images.get_image_features(image.id, MODEL, **asked)
        (folder / "kept.npy").write_bytes(kept)
        sent = FeatureMapsApi(client).extract_features(
            MODEL, photograph.read_bytes(), **asked, _content_type="application/octet-stream"
        )
        (folder / "sent.npy").write_bytes(sent)
        picture = images.get_image_picture(image.id, MODEL, LAYER, colormap="viridis")
        (folder / "map.png").write_bytes(picture)
        try:
            images.get_image_features(image.id, MODEL, layers=["stage1.block2.rellu"])
        except NotFoundException as refused:
            problem = refused.data
    assert isinstance(problem, Problem)
    told = {"status": problem.status, "code": problem.code.value, "suggestions": problem.suggestions}
    print(json.dumps({"layers": [layer.name for layer in layers], "problem": told}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
