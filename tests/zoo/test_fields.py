"""Receptive fields of ten networks, held against gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.values import Layer
from tests.builders import known
from tests.zoo.subjects import Subject

pytestmark = pytest.mark.zoo

NETWORKS = (
    *("resnet18", "mobilenetv2_100", "vgg11_bn", "densenet121", "regnetx_002", "efficientnet_lite0"),
    *("squeezenet1_1", "dla34", "unet_transposed", "pyramid"),
)


def test_fields(subject: Subject, record_property: Callable[[str, object], None]) -> None:
    rows = subject.model.layers(subject.sizes[0]).by_name
    held = [(rows[name], field) for field in subject.fields.values() for name in field["layers"]]
    exact = [(layer, field) for layer, field in held if layer.receptive_field.status == "exact"]
    wrong = [reason for layer, field in held for reason in _faults(layer, field, subject.shape[1:])]
    record_property("layers", len(held))
    record_property("exact", len(exact))
    record_property("wrong", len(wrong))
    if not held:
        pytest.fail("no module's value was found in the file", pytrace=False)
    if wrong:
        pytest.fail(f"{len(wrong)} wrong fields, the first: {wrong[0]}", pytrace=False)


def _faults(layer: Layer, field: dict[str, list[Any]], size: tuple[int, int]) -> Iterator[str]:
    claim = layer.receptive_field
    if claim.status not in ("exact", "upper_bound") or layer.reduction is None:
        return
    for axis, (cell, seen) in enumerate(zip(field["cell"], field["pixels"], strict=True)):
        first = known(claim.start)[axis] + cell * layer.reduction[axis]
        last = first + known(claim.size)[axis] - 1
        expected = [max(first, 0), min(last, size[axis] - 1)]
        inside = expected[0] <= seen[0] and seen[1] <= expected[1]
        if not inside or (claim.status == "exact" and seen != expected):
            yield f"{layer.name} axis {axis}: cell {cell} sees {seen}, not {[*map(float, expected)]}"
