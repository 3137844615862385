"""Multiply-accumulates by PyTorch's counter."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.zoo import networks


@torch.no_grad()
def count(network: str) -> int:
    """Of one image; attention as the products it consists of, which the counter knows on every device."""
    net, shape = networks.built(network)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(networks.images(shape)[:1])
    return counter.get_total_flops() // 2
