"""onnxruntime's error messages, as they may leave this program: without codes, source lines and paths."""

import re
from pathlib import Path

SUMMARIES = (
    ("No Op registered for", "the graph uses an operator that onnxruntime does not have"),
    ("is not a registered", "the graph uses an operator that onnxruntime does not have"),
    ("NOT_IMPLEMENTED", "the graph uses an operator or type that onnxruntime does not implement"),
    ("under development", "the graph's opset is newer than this onnxruntime"),
    ("CUDA", "the CUDA execution provider did not start"),
)
# `[ONNXRuntimeError] : 1 : FAIL : ` and, in some messages, the line of the source with its function.
ERROR_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
# It begins at a word only: names of nodes are the file's, and a search from each of their slashes is cubic.
SOURCE_LINE = re.compile(r"(?<!\S)/[^\s:]+\.(?:cc|h|cpp|cu):\d+ .{0,1000}?\)(?: const)? ")
LONGEST_READ, LONGEST_SENTENCE = 8000, 1000


def refusal(text: str, folder: Path) -> str:
    """Why the runtime refuses a graph: a summary where we have one, and the runtime's own sentence."""
    summary = next((told for mark, told in SUMMARIES if mark in text), "onnxruntime refuses the graph")
    return f"{summary}: {sentence(text, folder)}"


def sentence(text: str, folder: Path) -> str:
    """The runtime's message without its code, its source line and the path of the model's folder."""
    text = SOURCE_LINE.sub("", ERROR_CODE.sub("", text[:LONGEST_READ]))
    text = text.replace(str(folder.resolve()), "").strip()
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= LONGEST_SENTENCE else f"{text[:LONGEST_SENTENCE]}..."


def is_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it arose from, says that the runtime got no memory."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text:
            return True
        error = error.__cause__
    return False
