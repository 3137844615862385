"""Writes `openapi.json` beside this file, from which clients are generated; `make openapi` calls it."""

import json
import tempfile
from pathlib import Path

from service.app import make_app
from service.settings import Settings


def main() -> None:
    """The document depends on the code alone, not on what is served."""
    with tempfile.TemporaryDirectory() as scratch:
        app = make_app(Settings(load="lazy", image_store=f"{scratch}/images.sqlite3"))
        text = json.dumps(app.openapi(), indent=2, ensure_ascii=False)
    Path(__file__).with_name("openapi.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
