"""What has to hold over all exports together."""

import pytest

from tests.zoo.records import Records

pytestmark = pytest.mark.zoo

# Networks of tokens, or of tokens in part: their layers of four axes need not be maps.
TRANSFORMERS = (
    *("coatnet", "deit", "edgenext", "efficientformer", "efficientvit", "fastvit", "levit", "maxvit"),
    *("mobilevit", "swin", "vit"),
)


def test_share_of_maps_without_reduction(records: Records, names: list[str]) -> None:
    convolutional = [name for name in names if not name.startswith(TRANSFORMERS)]
    total = records.total("reductions", convolutional)
    assert total["without"] <= 0.05 * total["layers"], total


def test_share_of_timm_stages_among_features(records: Records, names: list[str]) -> None:
    total = records.total("features", names)
    assert total["equal"] >= 0.95 * total["stored"], total
