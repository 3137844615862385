"""The keyword `features`, held against timm's features_only with the same weights."""

from collections.abc import Callable
from typing import Any

import pytest

from service.values import Layer
from tests.zoo import networks
from tests.zoo.subjects import Subject

pytestmark = pytest.mark.zoo

NETWORKS = [*networks.TIMM, *networks.TIMM_TWICE, "resnet50_os8"]


def test_features(subject: Subject, record_property: Callable[[str, object], None]) -> None:
    features = {x.feature: x for x in subject.model.layers().layers if x.feature is not None}
    stored = {k: stage for k, stage in enumerate(subject.stages) if stage["layers"]}
    equal = [k for k, stage in stored.items() if any(_is_stage(x, stage) for x in features.values())]
    placed = [k for k in equal if k in features and _is_stage(features[k], stored[k])]
    record_property("stages", len(subject.stages))
    record_property("stored", len(stored))
    record_property("equal", len(equal))
    record_property("placed", len(placed))
    record_property("more", max(len(features) - len(stored), 0))
    missing = [f"{k} ({stored[k]['layers'][0]})" for k in stored if k not in equal]
    if missing:
        pytest.fail(f"timm's stages {', '.join(missing)} are missing", pytrace=False)


def _is_stage(layer: Layer, stage: dict[str, Any]) -> bool:
    reduction = stage["reduction"]
    return (
        layer.name in stage["layers"]
        and layer.channels == stage["channels"]
        and layer.reduction == (reduction, reduction)
    )
