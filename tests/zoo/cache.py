"""The exports, the oracles' data and the results that one run leaves to the next, in the folder ZOO_CACHE."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.zoo import networks

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("ZOO_CACHE", ROOT / ".zoo-cache"))
MODELS = FOLDER / "models"
ZOO = ROOT / "tests" / "zoo"


def code_digest() -> str:
    """SHA-256 of the engine's code and of this test's."""
    files = [file for folder in (ROOT / "service", ZOO) for file in sorted(folder.rglob("*.py"))]
    return _joined_digest(*files)


def _joined_digest(*files: Path) -> str:
    return hashlib.sha256("".join(map(_digest, files)).encode()).hexdigest()


@lru_cache(maxsize=256)
def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def exported(network: str, variant: str) -> Path:
    """A model file, exported where it is missing; kept until its folder is deleted."""
    folder = MODELS / f"{network}.{variant}" / "1"
    if not (folder / "model.onnx").exists():
        partial = folder.with_name("partial")
        partial.mkdir(parents=True, exist_ok=True)
        net, shape = networks.built(network)
        with warnings.catch_warnings(action="ignore"):
            networks.export(net, shape, variant, partial / "model.onnx")
        partial.rename(folder)
    return folder / "model.onnx"


def remembered(kind: str, name: str, work: Callable[[], Any], *sources: Path) -> Any:
    """What `work` gives, as JSON; kept until one of the files that it is made from changes."""
    path, digest = FOLDER / "oracles" / kind / f"{name}.json", _joined_digest(*sources)
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["digest"] == digest:
            return kept["value"]
    text = json.dumps({"digest": digest, "value": work()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(path)
    return json.loads(text)["value"]
