"""Train the bundled CIFAR-10 network and write it as an ONNX file.

Stages: load, train, export, evaluate. The first epochs see the images at 32x32, the last ones at
mixed sizes, because a network trained at one size does not hold at another.
"""

import argparse
import io
import os
import time
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

WIDTHS, BLOCKS, CLASSES = (32, 64, 128), 2, 10
BATCH = {32: 256, 64: 128, 96: 128}
WEIGHT_DECAY, SMOOTHING, PADDING = 5e-4, 0.05, 4
NORM_STEPS = 40
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Phase:
    """A part of the training: its length, its rates at both ends, and the share of each size.

    A training step is normalised by the statistics of its own size; in use all sizes share one
    set. A frozen phase is trained with that set, so that the weights fit it at every size.
    """

    epochs: float
    rates: tuple[float, float]
    share: dict[int, float]  # of the images
    frozen: bool = False


SMALL, MIXED = {32: 1.0}, {32: 0.55, 64: 0.45}
PHASES = (
    Phase(3, (0.0, 0.4), SMALL),
    Phase(9, (0.4, 0.188), SMALL),
    Phase(1, (0.188, 0.165), {32: 0.75, 64: 0.10, 96: 0.15}),
    Phase(1.75, (0.1, 0.07), MIXED, frozen=True),
    Phase(2.8, (0.12, 0.045), MIXED),
    Phase(1.4, (0.06, 0.008), MIXED),
    Phase(0.7, (0.01, 0.0), MIXED, frozen=True),
)


class ConvNorm(nn.Module):
    """A convolution and its BatchNorm: the stem, or a block's shortcut."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then normalise."""
        return self.bn(self.conv(x))


class Block(nn.Module):
    """Two 3x3 convolutions whose result is added to the block's input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.bn2.weight)  # each block starts as its shortcut alone
        same = inputs == outputs
        self.shortcut = None if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the two convolutions' result to the input, or to its shortcut."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


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

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, 3, height, width)."""
        x = self.stage3(self.stage2(self.stage1(functional.relu(self.stem(x)))))
        return self.logits(x.mean(dim=(2, 3)))


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
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if size != x.shape[-1]:
        x = functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def augment(padded: Tensor, chosen: Tensor) -> Tensor:
    """Crop and flip each chosen image by an offset and a coin of its own."""
    count, side = len(chosen), padded.shape[1] - 2 * PADDING
    offset = torch.randint(0, 2 * PADDING + 1, (2, count, 1))
    line = torch.arange(side).expand(count, side)
    column = torch.where(torch.rand(count, 1) < 0.5, line, side - 1 - line)
    rows, columns = line + offset[0], column + offset[1]
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


class Sampler:
    """Draws steps of one size from the images, each image once before any comes again."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        planes = images.permute(0, 3, 1, 2).float()
        planes = functional.pad(planes, [PADDING] * 4, mode="reflect")
        self.padded = planes.byte().permute(0, 2, 3, 1).contiguous()
        self.labels = labels
        self.order = torch.empty(0, dtype=torch.int64)

    def draw(self, share: dict[int, float]) -> tuple[Tensor, Tensor]:
        """The input and the labels of a step whose size is drawn by its share of the images."""
        # A share of the images becomes a share of the steps when divided by a step's images.
        weight = torch.tensor([part / BATCH[size] for size, part in share.items()])
        size = list(share)[int(torch.multinomial(weight, 1))]
        if len(self.order) < BATCH[size]:
            self.order = torch.randperm(len(self.labels))
        chosen, self.order = self.order[: BATCH[size]], self.order[BATCH[size] :]
        return to_input(augment(self.padded, chosen), size), self.labels[chosen]


def phase_at(position: float) -> tuple[Phase, float]:
    """The phase and the rate at a position in epochs."""
    for phase in PHASES:
        if position < phase.epochs:
            break
        position -= phase.epochs
    first, last = phase.rates
    return phase, first + (last - first) * min(1.0, position / phase.epochs)


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD whose weight decay leaves scales and biases alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1]},
    ]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


def step(model: ResNet, optimizer: torch.optim.SGD, x: Tensor, y: Tensor, longest: float) -> float:
    """One optimisation step with a gradient no longer than given; the loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x).float()
    loss = functional.cross_entropy(logits, y, label_smoothing=SMOOTHING)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), longest)
    optimizer.step()
    return loss.item()


def set_norms(model: ResNet, sampler: Sampler, phase: Phase) -> None:
    """Let BatchNorm follow each step, or for a frozen phase measure one set of statistics."""
    model.train()
    if not phase.frozen:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the steps
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(NORM_STEPS):
            model(sampler.draw(phase.share)[0])
    for norm in norms:
        norm.eval()


def train(model: ResNet, sampler: Sampler, epochs: float, checkpoint: Path) -> None:
    """Train by the phases, stretched to some epochs, from the checkpoint if there is one."""
    optimizer, seen, phase = make_optimizer(model), 0, None
    if checkpoint.exists():
        weights, momenta, seen = torch.load(checkpoint)
        model.load_state_dict(weights)
        optimizer.load_state_dict(momenta)
        torch.manual_seed(seen)  # else the first images' order would come again
    stretch, count = sum(phase.epochs for phase in PHASES) / epochs, len(sampler.labels)
    started, losses = time.monotonic(), []
    while seen < epochs * count:
        now, rate = phase_at(seen / count * stretch)
        if now is not phase:
            phase = now
            set_norms(model, sampler, phase)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = sampler.draw(phase.share)
        losses.append(step(model, optimizer, x, y, longest=1.0 if phase.frozen else 100.0))
        seen += len(y)
        if seen // count > (seen - len(y)) // count:
            torch.save((model.state_dict(), optimizer.state_dict(), seen), checkpoint)
            print(f"epoch {seen // count} of {epochs:.4g}: rate {rate:.3f}, ", end="")
            print(f"loss {np.mean(losses):.4f}, {time.monotonic() - started:.0f} s", flush=True)
            losses.clear()


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
    for size in BATCH:
        x = to_input(images[:16], size).contiguous()
        (actual,) = session.run(None, {"image": x.numpy()})
        np.testing.assert_allclose(actual, model(x).detach().numpy(), atol=1e-4)
        print(f"top-1 at {size}x{size}: {top1(session, images, labels, size):.4f}", flush=True)


def main() -> None:
    """Run the four stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an .npz of JPEGs")
    parser.add_argument("--epochs", type=float, default=sum(phase.epochs for phase in PHASES))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "1" / "model.onnx")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    options = parser.parse_args()
    torch.manual_seed(0)
    model = ResNet().to(memory_format=torch.channels_last)
    images, labels = load(options.data, "train")
    train(model, Sampler(images, labels), options.epochs, options.checkpoint)
    export(model.eval().state_dict(), len(WIDTHS), BLOCKS, options.output)
    evaluate(model, options.output, *load(options.data, "test"))


if __name__ == "__main__":
    main()
