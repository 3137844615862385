"""Train the bundled CIFAR-10 network and write it as an ONNX file.

Stages: load, train, measure the norms, export, evaluate. Each step sees images of several sizes, because
a network trained at one size does not hold at another; on a GPU it takes minutes, on two cores a night.
"""

import argparse
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

import numpy as np
import onnxruntime
import torch
from export import export
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

WIDTHS, BLOCKS, CLASSES = (32, 64, 128), 2, 10
WARM_UP, WEIGHT_DECAY, SMOOTHING, PADDING = 0.15, 5e-4, 0.1, 4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Parts = list[Tensor]  # one tensor a size


@dataclass(frozen=True)
class Phase:
    """A part of the training: its length, its highest rate, and how many images of each size a step has.

    An averaged phase ends with the mean of the weights of its steps (Izmailov et al. 2018, arXiv 1803.05407).
    """

    epochs: int
    peak_rate: float
    images: Mapping[int, int]
    averaged: bool = False

    @property
    def step_images(self) -> int:
        """Images of a step, all sizes together."""
        return sum(self.images.values())


PHASES = (
    Phase(70, 0.4, {32: 224, 64: 128, 96: 32}),
    Phase(45, 0.25, {32: 352, 64: 56, 96: 8}),
    Phase(2, 0.03, {32: 224, 64: 32}, averaged=True),
)
# Steps on images as they are, after all phases, in which the norms' statistics are measured.
NORM_IMAGES, NORM_STEPS = {32: 352, 64: 56, 96: 8}, 60


class Conv(nn.Conv2d):
    """A convolution of each size's images."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    def forward(self, parts: Parts) -> Parts:
        """Convolve."""
        return [super(Conv, self).forward(x) for x in parts]


class Norm(nn.BatchNorm2d):
    """BatchNorm with one set of statistics for all sizes, in training as in use."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.01)

    def forward(self, parts: Parts) -> Parts:
        """Normalise by the statistics of all images, each counting the same whatever its size."""
        mean, var = self._measure(parts) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return [(x * scale[:, None, None] + shift[:, None, None]).to(x.dtype) for x in parts]

    def _measure(self, parts: Parts) -> tuple[Tensor, Tensor]:
        count = sum(map(len, parts))
        mean = sum(x.float().mean(dim=(0, 2, 3)) * (len(x) / count) for x in parts)
        square = sum(x.float().square().mean(dim=(0, 2, 3)) * (len(x) / count) for x in parts)
        var = square - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return mean, var


class ConvNorm(nn.Module):
    """A convolution and its BatchNorm: the stem, or a block's shortcut."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, kernel, stride)
        self.bn = Norm(outputs)

    def forward(self, parts: Parts) -> Parts:
        """Convolve, then normalise."""
        return self.bn(self.conv(parts))


class Block(nn.Module):
    """Two 3x3 convolutions whose result is added to the block's input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv(inputs, outputs, 3, stride)
        self.bn1 = Norm(outputs)
        self.conv2 = Conv(outputs, outputs, 3, 1)
        self.bn2 = Norm(outputs)
        nn.init.zeros_(self.bn2.weight)  # each block starts as its shortcut alone
        same = inputs == outputs
        self.shortcut = None if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, parts: Parts) -> Parts:
        """Add the two convolutions' result to the input, or to its shortcut."""
        made = self.bn2(self.conv2(rectified(self.bn1(self.conv1(parts)))))
        beside = parts if self.shortcut is None else self.shortcut(parts)
        return rectified([y + x for y, x in zip(made, beside, strict=True)])


def rectified(parts: Parts) -> Parts:
    """Each tensor's ReLU."""
    return [functional.relu(x) for x in parts]


class ResNet(nn.Module):
    """Stem, three stages of basic blocks, global average pool and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, WIDTHS[0], 3, 1)
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, 1):
            blocks = nn.Sequential()
            for block in range(1, BLOCKS + 1):
                blocks.add_module(f"block{block}", Block(inputs, width, 1 + (width != inputs)))
                inputs = width
            self.add_module(f"stage{stage}", blocks)
        self.logits = nn.Linear(inputs, CLASSES)

    def forward(self, parts: Parts) -> Tensor:
        """Logits (n, 10) of all images, size after size, each size (n, 3, height, width)."""
        parts = self.stage3(self.stage2(self.stage1(rectified(self.stem(parts)))))
        return self.logits(torch.cat([x.mean(dim=(2, 3)) for x in parts]))


def load(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Decode a split: images (n, 32, 32, 3) uint8 and labels (n,)."""
    with np.load(data) as stored:
        files = stored[f"{split}_jpeg"].tobytes()
        offset = stored[f"{split}_offset"]
        labels = stored[f"{split}_label"].astype(np.int64)
    ends = pairwise(offset)
    images = [np.asarray(Image.open(io.BytesIO(files[at:end])).convert("RGB")) for at, end in ends]
    return torch.from_numpy(np.stack(images)), torch.from_numpy(labels)


def to_input(pixels: Tensor, size: int) -> Tensor:
    """Normalise uint8 NHWC pixels to float NCHW and enlarge them to size x size."""
    x = pixels.permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(each, device=x.device).view(3, 1, 1) for each in (MEAN, STD))
    x = (x - mean) / std
    if size != x.shape[-1]:
        x = functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def augment(padded: Tensor, chosen: Tensor) -> Tensor:
    """Crop and flip each chosen image by an offset and a coin of its own."""
    count, side, where = len(chosen), padded.shape[1] - 2 * PADDING, padded.device
    offset = torch.randint(0, 2 * PADDING + 1, (2, count, 1), device=where)
    line = torch.arange(side, device=where).expand(count, side)
    column = torch.where(torch.rand(count, 1, device=where) < 0.5, line, side - 1 - line)
    rows, columns = line + offset[0], column + offset[1]
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


class Sampler:
    """Draws steps from the images, each image once before any comes again."""

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device) -> None:
        planes = images.permute(0, 3, 1, 2).float()
        planes = functional.pad(planes, [PADDING] * 4, mode="reflect")
        self.padded = planes.byte().permute(0, 2, 3, 1).contiguous().to(device)
        self.labels = labels.to(device)
        self.order = torch.empty(0, dtype=torch.int64, device=device)

    def draw(self, images: Mapping[int, int], *, plain: bool = False) -> tuple[Parts, Tensor]:
        """The inputs and the labels of a step with so many images of each size, augmented or plain."""
        count = sum(images.values())
        if len(self.order) < count:
            self.order = torch.randperm(len(self.labels), device=self.labels.device)
        chosen, self.order = self.order[:count], self.order[count:]
        inside = slice(PADDING, -PADDING)
        crops = self.padded[chosen, inside, inside] if plain else augment(self.padded, chosen)
        pieces = zip(crops.split(list(images.values())), images, strict=True)
        parts = [to_input(crop, size) for crop, size in pieces]
        return parts, self.labels[chosen]


def rate_at(progress: float) -> float:
    """The share of the highest rate at a share of a phase: up in a line, then down to nothing."""
    return min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD whose weight decay leaves scales and biases alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1]},
    ]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


def train(model: nn.Module, sampler: Sampler, phase: Phase) -> None:
    """Train for one phase."""
    optimizer, device = make_optimizer(model), sampler.labels.device
    epoch = len(sampler.labels) // phase.step_images
    steps, started, losses = phase.epochs * epoch, time.monotonic(), []
    average = AveragedModel(model)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.peak_rate * rate_at(step / steps)
        parts, labels = sampler.draw(phase.images)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(parts).float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if phase.averaged and step >= WARM_UP * steps:
            average.update_parameters(model)
        if (step + 1) % epoch == 0:
            loss, seconds = torch.stack(losses).mean().item(), time.monotonic() - started
            done = (step + 1) // epoch
            print(f"epoch {done} of {phase.epochs}: loss {loss:.4f}, {seconds:.0f} s", flush=True)
            losses.clear()
    if phase.averaged:
        model.load_state_dict(average.module.state_dict())


def measure_norms(model: nn.Module, sampler: Sampler) -> None:
    """Measure the statistics anew on images as they are, which is how they are seen in use."""
    model.train()
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    with torch.no_grad():
        for step in range(NORM_STEPS):
            for norm in norms:
                norm.momentum = 1 / (step + 1)  # A plain mean over the steps.
            model(sampler.draw(NORM_IMAGES, plain=True)[0])


def top1(session: onnxruntime.InferenceSession, pixels: Tensor, labels: Tensor, size: int) -> float:
    """The share of test images named rightly when Pillow enlarges them to size x size."""
    right, shape, mean, std = 0, (size, size), np.float32(MEAN), np.float32(STD)
    for start in range(0, len(pixels), 100):
        images = [Image.fromarray(image) for image in pixels[start : start + 100].numpy()]
        images = [image.resize(shape, Image.Resampling.BILINEAR) for image in images]
        x = (np.stack(images).astype(np.float32) * np.float32(1 / 255) - mean) / std
        (logits,) = session.run(None, {"image": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
        right += int((logits.argmax(1) == labels[start : start + 100].numpy()).sum())
    return right / len(pixels)


def evaluate(model: ResNet, path: Path, images: Tensor, labels: Tensor) -> None:
    """Compare the file with PyTorch, and print its top-1 at each size."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in NORM_IMAGES:
        x = to_input(images[:16], size).contiguous()
        (actual,) = session.run(None, {"image": x.numpy()})
        np.testing.assert_allclose(actual, model([x]).detach().numpy(), atol=1e-4)
        print(f"top-1 at {size}x{size}: {top1(session, images, labels, size):.4f}", flush=True)


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an .npz of JPEGs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "1" / "model.onnx")
    parser.add_argument("--compile", action="store_true", help="by torch.compile: worth it on a GPU")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ResNet().to(device, memory_format=torch.channels_last)
    sampler = Sampler(*load(options.data, "train"), device)
    if options.compile:
        model.compile()
    for phase in PHASES:
        train(model, sampler, phase)
    measure_norms(model, sampler)
    model = model.cpu().eval()
    export(model.state_dict(), len(WIDTHS), BLOCKS, options.output)
    evaluate(model, options.output, *load(options.data, "test"))


if __name__ == "__main__":
    main()
