"""Multiply-accumulates of the whole network, held against PyTorch's flop counter."""

import pytest

from tests.zoo.subjects import Subject

pytestmark = pytest.mark.zoo

# By network and variant, where the counter counts something else than the file computes.
EXCEPTIONS: dict[str, str] = {}


def test_macs(subject: Subject) -> None:
    table = subject.model.layers(subject.sizes[0])
    actual = subject.model.total_macs(table, [table.by_name[name] for name in table.outputs])
    if actual is None:
        missing = [layer.name for layer in table.layers if layer.macs is None]
        pytest.fail(f"total_macs is null for {len(missing)} layers, the first: {missing[0]}", pytrace=False)
    if actual != subject.macs and subject.name not in EXCEPTIONS:
        pytest.fail(f"total_macs is {actual}, PyTorch counts {subject.macs}", pytrace=False)
