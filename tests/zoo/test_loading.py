"""Every export loads, and gives what onnxruntime gives on the whole graph."""

import pytest

from service.engine.loaded import LoadedModel
from tests.zoo.subjects import Subject, digits

pytestmark = pytest.mark.zoo


def test_loading(subject: Subject) -> None:
    if isinstance(subject.loaded, Exception):
        error = subject.loaded
        pytest.fail(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", pytrace=False)
    wrong = [f"{h}x{w}" for h, w in subject.sizes if not _gives_the_outputs(subject, (h, w))]
    if wrong:
        pytest.fail(f"other outputs than the whole graph's at {', '.join(wrong)}", pytrace=False)


def _gives_the_outputs(subject: Subject, size: tuple[int, int]) -> bool:
    model: LoadedModel = subject.model
    table = model.layers(size)
    outputs = [table.by_name[name] for name in table.outputs]
    values = model.run(subject.image(size), outputs)
    return {name: digits(value) for name, value in values.items()} == subject.truth(size)["outputs"]
