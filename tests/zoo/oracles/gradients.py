"""Receptive fields by gradients: the input pixels on which one cell of a module's output depends."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from service.values import Array
from tests.zoo import networks

MODULES = 12
# So that sums of many branches stay below the 6 at which ReLU6 has no gradient.
SMALL = 1e-3


def fields(network: str) -> dict[str, dict[str, list[list[int]] | list[int]]]:
    """By module: the middle `cell` (y, x), and the first and last `pixels` along y and x that it sees."""
    net, shape = networks.build(network)
    names = _modules(net, shape)
    _make_positive(net)
    x = torch.full((1, *shape), SMALL, dtype=torch.float64, requires_grad=True)
    with recorded(net, names) as outputs:
        net(x)
    return {name: _field(value, x) for name, value in outputs.items()}


@torch.no_grad()
def module_values(network: str, names: list[str]) -> dict[str, Array]:
    """What the modules give in the file's own weights."""
    net, shape = networks.built(network)
    with recorded(net, names) as outputs:
        net(networks.images(shape)[:1])
    return {name: value.numpy() for name, value in outputs.items()}


@contextmanager
def recorded(net: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """By module, a copy of its output: a following activation may work in place."""
    outputs: dict[str, Tensor] = {}
    modules = dict(net.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _m, _x, y, name=name: outputs.update({name: y.clone()}))
        for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _modules(net: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """Some norms, evenly spaced, or convolutions where there are none: exporters fold norms into these."""
    kind = nn.BatchNorm2d if any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) else nn.Conv2d
    names = [name for name, module in net.named_modules() if isinstance(module, kind)]
    with recorded(net, names) as outputs:
        net(networks.images(shape)[:1])
    maps = [name for name, value in outputs.items() if value.ndim == 4]
    return list(islice(maps, 0, None, max(len(maps) // MODULES, 1)))


def _make_positive(net: nn.Module) -> None:
    """Every weight a positive share, every maximum a mean: no gradient is zero by chance."""
    for name, parameter in net.double().named_parameters():
        data = parameter.data
        if data.ndim < 2:
            data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            data.abs_().add_(1e-3).div_(data.flatten(1).sum(1).view(-1, *[1] * (data.ndim - 1)))
    for module in list(net.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.zero_()
            module.running_var.fill_(1.0)
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                mean = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, mean)


def _field(value: Tensor, x: Tensor) -> dict[str, list[list[int]] | list[int]]:
    cell = [side // 2 for side in value.shape[2:]]
    (gradient,) = torch.autograd.grad(value[0, :, cell[0], cell[1]].sum(), x, retain_graph=True)
    seen = (gradient[0] != 0).any(0)
    extents = [seen.any(1 - axis).nonzero().flatten() for axis in (0, 1)]
    return {"cell": cell, "pixels": [[int(e.min()), int(e.max())] for e in extents]}
