"""The networks of the zoo test: timm's, torchvision's and those of `shapes`, with random weights, by name.

Weights are seeded and batch statistics come from one forward pass on noise, so that activations keep the
magnitudes that trained networks have and every export can be made again bit for bit.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from tests.zoo import torchvision_cpu  # noqa: F401  # Before timm, which imports torchvision.

# isort: split
import timm
import torchvision

from tests.zoo import shapes


def _words(text: str) -> list[str]:
    return text.split()


TIMM = _words("""
resnet18 resnet50 mobilenetv2_100 mobilenetv3_small_100 efficientnet_b0 densenet121 regnetx_002 regnety_004
convnext_atto inception_v3 tf_efficientnetv2_b0 hrnet_w18_small dla34 resnext50_32x4d seresnet50
res2net50_26w_4s resnest14d vgg11_bn efficientnet_lite0 mnasnet_100 ghostnet_100 fbnetc_100 ese_vovnet19b_dw
cspresnet50 cspdarknet53 repvgg_a0 inception_v4 xception41 eca_nfnet_l0 mixnet_s tinynet_e lcnet_050
hardcorenas_a skresnet18 selecsls42b dpn68 rexnet_100 nf_resnet50 legacy_seresnet18 edgenext_xx_small
mobileone_s0 fastvit_t8 mobilevit_xxs poolformer_s12 efficientformer_l1 levit_128s
swin_tiny_patch4_window7_224 vit_tiny_patch16_224 deit_tiny_patch16_224 coatnet_0_rw_224 maxvit_tiny_tf_224
tf_efficientnet_b0 mobilenetv4_conv_small repvit_m0_9 hgnetv2_b0 starnet_s1 efficientvit_b0
""")
# Exported by TorchScript with a fixed batch and by dynamo with a free one only.
TIMM_TWICE = _words("""
convnextv2_atto cs3darknet_s ecaresnet26t efficientnetv2_rw_t gcresnet33ts inception_resnet_v2 resnet50_gn
resnet50d resnetaa50 resnetv2_50x1_bit
""")
TORCHVISION = ["googlenet", "shufflenet_v2_x1_0", "squeezenet1_1"]
CLASSIFIERS = [*TIMM, "resnet50_os8", *TORCHVISION, *TIMM_TWICE]
DENSE = list(shapes.CREATE)
# By the exporter and what is free: TorchScript with nothing, the batch, batch and size; dynamo likewise.
VARIANTS = ("fixed", "free", "dynamo", "free-hw", "dynamo-hw")
# The whole study: (network, variant).
EXPORTS = [
    *((n, v) for n in CLASSIFIERS for v in VARIANTS[:3] if v != "free" or n not in TIMM_TWICE),
    *((n, v) for n in DENSE for v in VARIANTS if v != "free"),
]
# Layer scales start at 1e-5 or so, other weights at 0.02.
SHUT = 1e-3
# The coarsest map of every network with a free size has one cell for so many pixels.
SIZE_STEP = 32


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network in evaluation mode and the shape (C, H, W) of its input."""
    torch.manual_seed(0)
    net, shape = _create(name)
    _open_branches(net)
    _set_batch_statistics(net, shape)
    return net.eval(), shape


def images(shape: tuple[int, int, int], count: int = 2, seed: int = 1) -> torch.Tensor:
    """Noise of `count` images (N, C, H, W) float32."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def _create(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    if name in shapes.CREATE:
        return shapes.CREATE[name](), shapes.INPUT
    if name in TORCHVISION:
        return _torchvision()[name](), (3, 224, 224)
    more = {"output_stride": 8} if name.endswith("_os8") else {}
    net = timm.create_model(name.removesuffix("_os8"), pretrained=False, **more)
    return net, timm.data.resolve_model_data_config(net)["input_size"]


def _torchvision() -> dict[str, Callable[[], nn.Module]]:
    models = torchvision.models
    return {
        "googlenet": lambda: models.googlenet(aux_logits=False, init_weights=True),
        "shufflenet_v2_x1_0": lambda: models.shufflenet_v2_x1_0(),
        "squeezenet1_1": lambda: models.squeezenet1_1(),
    }


@lru_cache(maxsize=1)
def built(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """What `build` gives, made once for all who leave it as it is."""
    return build(name)


@torch.no_grad()
def _open_branches(net: nn.Module) -> None:
    """Give weight to residual branches that start at zero (last norms, layer scales, gains).

    Else a block gives what it was given, and no comparison of values tells the two apart.
    """
    for name, parameter in net.named_parameters():
        is_scale = parameter.numel() == max(parameter.shape, default=1) and "bias" not in name
        if is_scale and parameter.abs().max() < SHUT:
            parameter.fill_(0.5)


@torch.no_grad()
def _set_batch_statistics(net: nn.Module, shape: tuple[int, int, int]) -> None:
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    if norms:
        net.train()(images(shape, 4, seed=2))


def export(net: nn.Module, shape: tuple[int, int, int], variant: str, path: Path) -> None:
    """Write one export of `VARIANTS`."""
    if variant.startswith("dynamo"):
        _capture(net, images(shape), path, _free_sides(variant))
    elif variant == "fixed":
        _trace(net, images(shape)[:1], path)
    else:
        axes = {"input": {0: "batch", **({2: "height", 3: "width"} if variant == "free-hw" else {})}}
        _trace(net, images(shape), path, input_names=["input"], dynamic_axes=axes)


def _free_sides(variant: str) -> dict[int, object]:
    """By axis, what torch.export takes as its dimension; sizes are multiples of `SIZE_STEP`."""
    if not variant.endswith("-hw"):
        return {}
    height, width = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    return {2: SIZE_STEP * height, 3: SIZE_STEP * width}


def _capture(net: nn.Module, x: torch.Tensor, path: Path, free: dict[int, object]) -> None:
    dimensions = ({0: torch.export.Dim("batch"), **free},)
    torch.onnx.export(net, (x,), str(path), dynamo=True, dynamic_shapes=dimensions, verbose=False)


def _trace(net: nn.Module, x: torch.Tensor, path: Path, **more: object) -> None:
    torch.onnx.export(net, (x,), str(path), dynamo=False, opset_version=17, **more)
