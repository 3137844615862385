"""onnxruntime's messages as they may leave the program."""

from pathlib import Path

import pytest

from service.engine.runtime_errors import refusal, sentence

CODE = "[ONNXRuntimeError] : 1 : FAIL : "
SOURCE = "/onnxruntime_src/onnxruntime/core/graph/graph.cc:1621 void onnxruntime::Graph::Resolve() "


def test_code_and_source_line_are_taken_off() -> None:
    assert sentence(f"{CODE}{SOURCE}This is an invalid model.", Path()) == "This is an invalid model."


def test_names_of_nodes_that_look_like_paths_stay() -> None:
    text = "Node (/layer1/layer1.0/conv1/Conv) Op (Conv) [ShapeInferenceError] no"
    assert sentence(CODE + text, Path()) == text


def test_the_models_folder_is_not_named(tmp_path: Path) -> None:
    assert str(tmp_path) not in refusal(f"{CODE}cannot read {tmp_path.resolve()}/weights.bin", tmp_path)


@pytest.mark.parametrize("unit", ["/", "/a.cc", "/a.cc:1 ", "a/"])
def test_hostile_names_of_a_megabyte_are_cut(unit: str) -> None:
    """A search that starts at every slash does not end in a lifetime here."""
    assert len(sentence(unit * (1_000_000 // len(unit)), Path())) < 1100
