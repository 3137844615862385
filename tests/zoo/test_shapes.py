"""Shapes of all layers, held against a run of the whole graph."""

from collections.abc import Callable

import pytest

from tests.zoo.subjects import Subject

pytestmark = pytest.mark.zoo


def test_shapes(subject: Subject, record_property: Callable[[str, object], None]) -> None:
    unknown, wrong, count = [], [], 0
    for size in subject.sizes:
        actual = subject.truth(size)["shapes"]
        for layer in subject.model.layers(size).layers:
            count += 1
            shape = layer.shape
            if shape is None or None in shape:
                is_unknown = layer.dtype.startswith("float") and not layer.has_variable_shape
                unknown += [layer.name] * is_unknown
            elif list(shape) != actual[layer.name]:
                wrong.append(f"{layer.name} {list(shape)} is {actual[layer.name]}")
    record_property("layers", count)
    record_property("unknown", len(unknown))
    record_property("wrong", len(wrong))
    if wrong:
        pytest.fail(f"{len(wrong)} wrong shapes, the first: {wrong[0]}", pytrace=False)
    if unknown:
        pytest.fail(f"{len(unknown)} of {count} without a shape, the first: {unknown[0]}", pytrace=False)
