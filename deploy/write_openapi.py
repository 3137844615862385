"""Writes `openapi.json` beside this file and the page's `parameters.js`; `make openapi` calls it."""

import json
import tempfile
from pathlib import Path

from service.app import make_app
from service.declarations import schema_of
from service.parameters import Drawing
from service.settings import Settings
from service.web.queries import FeaturesQuery
from service.web.static_files import FOLDER

PAGE_PARAMETERS = FOLDER / "page" / "parameters.js"


def page_parameters() -> str:
    """The module from which the page's controls get defaults, bounds and choices."""
    pictures = {
        name: {k: v for k, v in told.items() if k != "title"} for name, told in schema_of(Drawing).items()
    }
    arrays = schema_of(FeaturesQuery)["format"]["enum"]
    return (
        "// Written by `make openapi` from service/parameters.py: nothing is changed here.\n\n"
        "/**\n * Parameters of a picture as JSON Schema; `x-styles` are the styles that one changes.\n"
        " * @type {Record<string, Declared>}\n */\n"
        f"export const DRAWING = {json.dumps(pictures, indent=2)};\n\n"
        "/** The formats of arrays. */\n"
        f"export const ARRAY_FORMATS = {json.dumps(arrays)};\n"
    )


def main() -> None:
    """Both depend on the code alone, not on what is served."""
    with tempfile.TemporaryDirectory() as scratch:
        app = make_app(Settings(load="lazy", image_store=f"{scratch}/images.sqlite3"))
        text = json.dumps(app.openapi(), indent=2, ensure_ascii=False)
    Path(__file__).with_name("openapi.json").write_text(text + "\n", "utf-8")
    PAGE_PARAMETERS.write_text(page_parameters(), "utf-8")


if __name__ == "__main__":
    main()
