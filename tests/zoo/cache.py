"""The exports, the oracles' data and the results that one run leaves to the next, in the folder ZOO_CACHE."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.zoo import networks

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("ZOO_CACHE", ROOT / ".zoo-cache"))
MODELS = FOLDER / "models"
ZOO = ROOT / "tests" / "zoo"


def digest(*places: Path) -> str:
    """SHA-256 of source files and of all Python files in folders."""
    files = [f for p in places for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# Results hold for this code, the oracles' data for that.
CODE = digest(ROOT / "service", ZOO)
ORACLES = digest(ZOO / "oracles", ZOO / "networks.py", ZOO / "shapes.py")


def exported(network: str, variant: str) -> Path:
    """A model file, exported where it is missing; kept until its folder is deleted."""
    folder = MODELS / f"{network}.{variant}" / "1"
    if not (folder / "model.onnx").exists():
        partial = folder.with_name("partial")
        partial.mkdir(parents=True, exist_ok=True)
        net, shape = networks.build(network)
        with warnings.catch_warnings(action="ignore"):
            networks.export(net, shape, variant, partial / "model.onnx")
        partial.rename(folder)
    return folder / "model.onnx"


def remembered(kind: str, name: str, work: Callable[[], Any]) -> Any:
    """What `work` gives, as JSON; kept until the code of the oracles changes."""
    path = FOLDER / "oracles" / kind / f"{name}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["digest"] == ORACLES:
            return kept["value"]
    text = json.dumps({"digest": ORACLES, "value": work()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(path)
    return json.loads(text)["value"]
