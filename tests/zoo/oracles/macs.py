"""Multiply-accumulates by PyTorch's counter."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.zoo import networks


@torch.no_grad()
def count(network: str) -> int:
    """Of one image."""
    net, shape = networks.build(network)
    with FlopCounterMode(display=False) as counter:
        net(networks.images(shape)[:1])
    return counter.get_total_flops() // 2
