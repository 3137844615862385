"""What PyTorch's dynamo exporter writes into a node's metadata, as an `Origin`.

The format is that of `_set_node_metadata` in `torch.onnx._internal.exporter._core`; a file may hold anything.
"""

import ast
import re
from collections.abc import Mapping

from service.engine.nodes import Origin

SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"
FX_NODE = "pkg.torch.onnx.fx_node"
RULES = "pkg.onnxscript.rewriter.rule_name"
# Python's parser takes time and stack for what it reads; a module's path has a few dozen characters.
MAX_SCOPES_LENGTH = 4096
MAX_SCOPES = 64
# A concatenation of many tensors lists them all.
MAX_FX_LENGTH = 16384
_READ = re.compile(r"%(\w+)")
_USERS = re.compile(r"num_users=(\d{1,9})")
# How lists of plain names are written; Python's parser takes twenty times as long.
_PLAIN = re.compile(r"\['[^'\\]*'(?:, '[^'\\]*')*\]")


def origin_of(metadata: Mapping[str, str]) -> Origin | None:
    """None where a node has no scopes, or some that do not parse."""
    scopes = _scopes(metadata.get(SCOPES, ""))
    if not scopes:
        return None
    _, _, call = metadata.get(FX_NODE, "")[:MAX_FX_LENGTH].partition(":")
    rules = tuple(metadata.get(RULES, "")[:MAX_SCOPES_LENGTH].split(", ")) if RULES in metadata else ()
    kinds = _scopes(metadata.get(CLASSES, ""))
    kind = kinds[-2] if len(kinds) > 1 else ""
    users = _USERS.search(call)
    reads = tuple(_READ.findall(call))
    return Origin(scopes[:-1], scopes[-1], reads, rules, kind, int(users[1]) if users else None)


def _scopes(text: str) -> tuple[str, ...]:
    """The strings of a list literal; none of what is too long or no such list."""
    if not text.startswith("[") or len(text) > MAX_SCOPES_LENGTH:
        return ()
    if _PLAIN.fullmatch(text):
        found = tuple(text[2:-2].split("', '"))
        return found if len(found) <= MAX_SCOPES else ()
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    fits = isinstance(scopes, list) and len(scopes) <= MAX_SCOPES
    return tuple(scopes) if fits and all(isinstance(scope, str) for scope in scopes) else ()
