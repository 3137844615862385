"""Detectors, U-Nets, pyramids and segmentation networks whose graphs compute with shapes.

Small networks of the kinds that Ultralytics and segmentation libraries export, written for this test after
the published architectures, and torchvision's segmentation networks. With a free height and width their
graphs read sizes by Shape for anchors, reshapes and resizing.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo import torchvision_cpu  # noqa: F401  # Before torchvision's networks.

# isort: split
from torchvision.models import segmentation

CLASSES = 8
BINS = 16
STRIDES = (8, 16, 32)
# Widths and heights, in units of the stride.
ANCHORS = ((1.25, 1.6), (2.0, 3.75), (4.1, 2.9))


class ConvBlock(nn.Module):
    """Convolution, batch normalization, SiLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, first_kernel: int, shortcut: bool) -> None:
        super().__init__()
        self.first = ConvBlock(width, width, first_kernel)
        self.second = ConvBlock(width, width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class SplitBlock(nn.Module):
    """C2f of YOLOv8: one half passes the bottlenecks, and every intermediate value is concatenated."""

    def __init__(self, inputs: int, outputs: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.half = half
        self.enter = ConvBlock(inputs, outputs, 1)
        self.blocks = nn.ModuleList(Bottleneck(half, 3, shortcut) for _ in range(2))
        self.leave = ConvBlock(4 * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = list(self.enter(x).split((self.half, self.half), 1))
        for block in self.blocks:
            values.append(block(values[-1]))
        return self.leave(torch.cat(values, 1))


class CrossStageBlock(nn.Module):
    """C3 of YOLOv5: bottlenecks on one path, a 1x1 convolution on the other."""

    def __init__(self, inputs: int, outputs: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.main = ConvBlock(inputs, half, 1)
        self.side = ConvBlock(inputs, half, 1)
        self.block = Bottleneck(half, 1, shortcut)
        self.leave = ConvBlock(2 * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.cat((self.block(self.main(x)), self.side(x)), 1))


class FastPyramidPooling(nn.Module):
    """SPPF: three chained max poolings, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = ConvBlock(width, width // 2, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = ConvBlock(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.enter(x)]
        for _ in range(3):
            values.append(self.pool(values[-1]))
        return self.leave(torch.cat(values, 1))


Block = type[SplitBlock] | type[CrossStageBlock]


class Backbone(nn.Module):
    """Five halvings; gives the maps at strides 8, 16 and 32 with 2, 4 and 8 times `width` channels."""

    def __init__(self, block: Block, width: int) -> None:
        super().__init__()
        self.stem = ConvBlock(3, width // 2, 3, 2)
        widths = (width // 2, width, 2 * width, 4 * width, 8 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvBlock(a, b, 3, 2), block(b, b, True)) for a, b in pairwise(widths)
        )
        self.pooling = FastPyramidPooling(widths[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = [x := stage(x) for stage in self.stages]
        return [maps[1], maps[2], self.pooling(maps[3])]


class PathAggregation(nn.Module):
    """PAN neck: up by nearest neighbour, down by strided convolutions, joined by concatenation."""

    def __init__(self, block: Block, widths: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.up_middle = block(coarse + middle, middle, False)
        self.up_fine = block(middle + fine, fine, False)
        self.down_fine = ConvBlock(fine, fine, 3, 2)
        self.out_middle = block(fine + middle, middle, False)
        self.down_middle = ConvBlock(middle, middle, 3, 2)
        self.out_coarse = block(middle + coarse, coarse, False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fine, middle, coarse = maps
        middle = self.up_middle(torch.cat((self.upsample(coarse), middle), 1))
        fine = self.up_fine(torch.cat((self.upsample(middle), fine), 1))
        middle = self.out_middle(torch.cat((self.down_fine(fine), middle), 1))
        coarse = self.out_coarse(torch.cat((self.down_middle(middle), coarse), 1))
        return [fine, middle, coarse]


def cell_centres(map_: Tensor) -> Tensor:
    """The centre (x, y) of every cell of a map (N, C, H, W), in cells: (2, H * W)."""
    height, width = map_.shape[-2:]
    ys = torch.arange(height, dtype=map_.dtype) + 0.5
    xs = torch.arange(width, dtype=map_.dtype) + 0.5
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()))


class Distances(nn.Module):
    """DFL: the expected value of a distribution over 16 distances, for each of four sides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, cells = x.shape
        bins = x.view(batch, 4, BINS, cells).transpose(2, 1)
        return self.conv(bins.softmax(1)).view(batch, 4, cells)


class DecoupledHead(nn.Module):
    """Detect of YOLOv8: boxes and classes by branches of their own; gives (N, 4 + classes, cells)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.boxes = nn.ModuleList(branch(width, 32, 4 * BINS) for width in widths)
        self.classes = nn.ModuleList(branch(width, 32, CLASSES) for width in widths)
        self.distances = Distances()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [
            torch.cat((box(m), kind(m)), 1)
            for m, box, kind in zip(maps, self.boxes, self.classes, strict=True)
        ]
        joined = torch.cat([level.flatten(2) for level in levels], 2)
        sides, scores = joined.split((4 * BINS, CLASSES), 1)
        return torch.cat((self._decode(self.distances(sides), levels), scores.sigmoid()), 1)

    def _decode(self, sides: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Boxes (centre x, centre y, width, height) in pixels from distances to the cell's centre."""
        centres = torch.cat([cell_centres(level) for level in levels], 1)
        strides = torch.cat(
            [
                torch.full((1, level.shape[-2] * level.shape[-1]), float(stride))
                for level, stride in zip(levels, STRIDES, strict=True)
            ],
            1,
        )
        near, far = sides.chunk(2, 1)
        first, last = centres - near, centres + far
        return torch.cat(((first + last) / 2, last - first), 1) * strides


class AnchorHead(nn.Module):
    """Detect of the first YOLOv5: three anchors a cell; gives (N, boxes, 5 + classes)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.each = 5 + CLASSES
        self.convs = nn.ModuleList(nn.Conv2d(width, len(ANCHORS) * self.each, 1) for width in widths)
        self.register_buffer("anchors", torch.tensor(ANCHORS).view(1, len(ANCHORS), 1, 1, 2))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = zip(maps, self.convs, STRIDES, strict=True)
        return torch.cat([self._decode(conv(m), stride) for m, conv, stride in levels], 1)

    def _decode(self, x: Tensor, stride: int) -> Tensor:
        batch, _, height, width = x.shape
        grid = (cell_centres(x) - 0.5).transpose(0, 1).view(1, 1, height, width, 2)
        x = x.view(batch, len(ANCHORS), self.each, height, width).permute(0, 1, 3, 4, 2).contiguous()
        centre, size, scores = x.sigmoid().split((2, 2, 1 + CLASSES), 4)
        centre = (centre * 2 - 0.5 + grid) * stride
        size = (size * 2) ** 2 * self.anchors * stride
        return torch.cat((centre, size, scores), 4).view(batch, len(ANCHORS) * height * width, self.each)


def branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(ConvBlock(inputs, width), ConvBlock(width, width), nn.Conv2d(width, outputs, 1))


class Detector(nn.Module):
    def __init__(self, block: Block, head: type[DecoupledHead] | type[AnchorHead], width: int = 16) -> None:
        super().__init__()
        widths = (2 * width, 4 * width, 8 * width)
        self.backbone = Backbone(block, width)
        self.neck = PathAggregation(block, widths)
        self.head = head(widths)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.backbone(x)))


class Prototypes(nn.Module):
    """Mask prototypes of YOLOv8-seg, at twice the size of its input."""

    def __init__(self, inputs: int, width: int = 32, outputs: int = 8) -> None:
        super().__init__()
        self.enter = ConvBlock(inputs, width)
        self.upsample = nn.ConvTranspose2d(width, width, 2, 2)
        self.middle = ConvBlock(width, width)
        self.leave = ConvBlock(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.middle(self.upsample(self.enter(x))))


class MaskDetector(Detector):
    """A detector with mask coefficients for each box, and prototypes as a second output."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(SplitBlock, DecoupledHead, width)
        self.prototypes = Prototypes(2 * width)
        self.coefficients = nn.ModuleList(branch(n * width, 16, 8) for n in (2, 4, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.neck(self.backbone(x))
        masks = [part(m).flatten(2) for m, part in zip(maps, self.coefficients, strict=True)]
        return torch.cat((self.head(maps), torch.cat(masks, 2)), 1), self.prototypes(maps[0])


class DetectorClassifier(nn.Module):
    """YOLOv8-cls: the detector's backbone, pooled."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.backbone = Backbone(SplitBlock, width)
        self.conv = ConvBlock(8 * width, 128, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(self.backbone(x)[-1])).flatten(1)
        return self.linear(x).softmax(1)


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(ConvBlock(inputs, outputs), ConvBlock(outputs, outputs))


class ResizeUp(nn.Module):
    """To the size of the skipped map, whatever it is."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = functional.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat((skip, self.conv(x)), 1)


class TransposedUp(nn.Module):
    """Twice the size by a transposed convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 2, 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat((skip, self.conv(x)), 1)


class UNet(nn.Module):
    """Three levels with skip connections."""

    def __init__(self, up: type[ResizeUp] | type[TransposedUp], width: int = 8) -> None:
        super().__init__()
        widths = [width << level for level in range(4)]
        pairs = list(pairwise(widths))
        self.enter = DoubleConv(3, width)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in pairs)
        self.up = nn.ModuleList(up(b, a) for a, b in reversed(pairs))
        self.join = nn.ModuleList(DoubleConv(2 * a, a) for a, _ in reversed(pairs))
        self.leave = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.enter(x)]
        for block in self.down:
            maps.append(block(self.pool(maps[-1])))
        x = maps.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(up(x, maps.pop()))
        return self.leave(x)


class Pyramid(nn.Module):
    """A feature pyramid with a bottom-up path; resized to the size of the finer map and added."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.backbone = Backbone(CrossStageBlock, width)
        self.lateral = nn.ModuleList(nn.Conv2d(n * width, 32, 1) for n in (2, 4, 8))
        self.smooth = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in STRIDES)
        self.down = nn.ModuleList(nn.Conv2d(32, 32, 3, 2, 1) for _ in STRIDES[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = [conv(m) for conv, m in zip(self.lateral, self.backbone(x), strict=True)]
        for level in (1, 0):
            coarser = functional.interpolate(maps[level + 1], size=maps[level].shape[-2:], mode="nearest")
            maps[level] = maps[level] + coarser
        maps = [conv(m) for conv, m in zip(self.smooth, maps, strict=True)]
        for level in (1, 2):
            maps[level] = maps[level] + self.down[level - 1](maps[level - 1])
        return tuple(maps)


class ImagePooling(nn.Module):
    """The whole map's mean, resized to the map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = ConvBlock(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.pool(x))
        return functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class DilatedSegmenter(nn.Module):
    """DeepLab's atrous pyramid on a small backbone, resized to the image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        deep = 4 * width
        self.backbone = nn.Sequential(
            ConvBlock(3, width, 3, 2), ConvBlock(width, 2 * width, 3, 2), ConvBlock(2 * width, deep, 3, 2)
        )
        rates = [ConvBlock(deep, width, 3, dilation=rate) for rate in (2, 4, 6)]
        self.branches = nn.ModuleList((ConvBlock(deep, width, 1), *rates, ImagePooling(deep, width)))
        self.project = ConvBlock(5 * width, width, 1)
        self.classify = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone(x)
        y = torch.cat([branch(y) for branch in self.branches], 1)
        y = self.classify(self.project(y))
        return functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Segmentation(nn.Module):
    """One of torchvision's networks, which return a dictionary."""

    def __init__(self, create: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.net = create(weights=None, weights_backbone=None, num_classes=21)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["out"]


CREATE: dict[str, Callable[[], nn.Module]] = {
    "anchor_detector": lambda: Detector(CrossStageBlock, AnchorHead),
    "decoupled_detector": lambda: Detector(SplitBlock, DecoupledHead),
    "mask_detector": MaskDetector,
    "detector_classifier": DetectorClassifier,
    "unet_resize": lambda: UNet(ResizeUp),
    "unet_transposed": lambda: UNet(TransposedUp),
    "pyramid": Pyramid,
    "dilated_segmenter": DilatedSegmenter,
    "fcn_resnet50": lambda: Segmentation(segmentation.fcn_resnet50),
    "deeplabv3_mobilenet_v3_large": lambda: Segmentation(segmentation.deeplabv3_mobilenet_v3_large),
    "lraspp_mobilenet_v3_large": lambda: Segmentation(segmentation.lraspp_mobilenet_v3_large),
}
INPUT = (3, 160, 192)
