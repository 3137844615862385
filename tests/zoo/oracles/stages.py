"""What timm's `features_only` gives for a network, and which tensors of a file hold it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import timm
import torch
from torch import nn

from service.values import Array
from tests.zoo import networks

# Of a value's largest magnitude.
TOLERANCE = 2e-3


@dataclass(frozen=True, eq=False)
class Stage:
    """One of timm's feature maps: `value` is (1, C, H, W)."""

    reduction: int
    channels: int
    value: Array


@lru_cache(maxsize=1)
@torch.no_grad()
def timm_stages(network: str) -> list[Stage]:
    """With the weights of the seeded network; none where timm gives none."""
    if network not in networks.TIMM + networks.TIMM_TWICE + ["resnet50_os8"]:
        return []
    net, shape = networks.built(network)
    try:
        part = _features_only(network)
    except (RuntimeError, AttributeError, ValueError, AssertionError):
        return []
    part.load_state_dict(_renamed(net, part))
    info = part.feature_info
    values = part.eval()(networks.images(shape)[:1])
    return [
        Stage(int(r), int(c), _channels_first(v.numpy(), c))
        for r, c, v in zip(info.reduction(), info.channels(), values, strict=True)
    ]


def holders(value: Array, tensors: dict[str, Array]) -> list[str]:
    """The tensors that hold a value (1, C, H, W), channels first or last.

    None where it is zero throughout, as the last norms of residual blocks are before training.
    """
    if not value.any():
        return []
    last = value.transpose(0, 2, 3, 1)
    return [
        name
        for name, tensor in tensors.items()
        if (tensor.shape == value.shape and _close(tensor, value))
        or (tensor.shape == last.shape and _close(tensor, last))
    ]


def _close(actual: Array, expected: Array) -> bool:
    return float(np.abs(actual - expected).max()) <= TOLERANCE * float(np.abs(expected).max())


def _features_only(network: str) -> nn.Module:
    more = {"output_stride": 8} if network.endswith("_os8") else {}
    return timm.create_model(network.removesuffix("_os8"), features_only=True, **more)


def _renamed(net: nn.Module, part: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of the part, in which timm flattens `stages.0` to `stages_0`."""
    known = {name.replace(".", "_"): value for name, value in net.state_dict().items()}
    return {name: known[name.removeprefix("model.").replace(".", "_")] for name in part.state_dict()}


def _channels_first(value: Array, channels: int) -> Array:
    if value.shape[1] != channels and value.shape[-1] == channels:
        return value.transpose(0, 3, 1, 2)
    return value
