"""Train the bundled CIFAR-10 network and write it as an ONNX file.

Stages: load, train, export, evaluate. A part of every step are windows of enlarged images, because
a network that has seen its images at one size only does not hold at another.
"""

import argparse
import io
import os
import time
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

STEM, WIDTHS, BLOCKS, CLASSES = 32, (48, 96, 128), 2, 10
EPOCHS, BATCH = 50, 256
PEAK_RATE, WARM_UP, WEIGHT_DECAY, SMOOTHING = 0.4, 0.15, 5e-4, 0.1
SMALL_SIDE, SMALL_UNTIL = 24, 0.55  # crops of the first part of the training: half the work
PADDING, ENLARGED, ZOOM = 4, 0.25, (1.4, 2.2)
SIZES = (32, 48, 64, 96)  # evaluated
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


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
        self.shortcut = None if stride == 1 else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the two convolutions' result to the input, or to its shortcut."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """Stem, three stages of basic blocks, global average pool and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM, 3, 1)
        inputs = STEM
        for stage, width in enumerate(WIDTHS, 1):
            blocks = nn.Sequential()
            for block in range(1, BLOCKS + 1):
                blocks.add_module(f"block{block}", Block(inputs, width, 1 + (block == 1)))
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


def to_input(pixels: Tensor) -> Tensor:
    """Normalise uint8 NHWC pixels to float NCHW."""
    x = pixels.permute(0, 3, 1, 2).float().div(255)
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augment(x: Tensor, side: int) -> Tensor:
    """Cut a window of side x side out of each image, by an offset, a coin and a zoom of its own.

    Most windows keep the scale and move by whole pixels, up to PADDING beyond the mirrored edge;
    the share ENLARGED is bilinearly enlarged and stays inside.
    """
    count, size = len(x), x.shape[-1]
    enlarged = torch.rand(count, 1) < ENLARGED
    zoom = torch.where(enlarged, torch.empty(count, 1).uniform_(*ZOOM), 1.0)
    room = (size - side / zoom) / 2 + torch.where(enlarged, 0.0, PADDING)
    shift = torch.empty(count, 2).uniform_(-1, 1) * room.clamp(min=0)
    shift = torch.where(enlarged, shift, shift.round())
    flip = torch.where(torch.rand(count, 1) < 0.5, -1.0, 1.0)
    affine = torch.zeros(count, 2, 3)  # in halves of the image's side, as affine_grid wants it
    affine[:, 0, :1], affine[:, 1, 1:2] = flip * side / (zoom * size), side / (zoom * size)
    affine[:, :, 2] = shift / (size / 2)
    grid = functional.affine_grid(affine, [count, 3, side, side], align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def rate_at(progress: float) -> float:
    """The learning rate: up in a line, then down to nothing."""
    return PEAK_RATE * min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD whose weight decay leaves scales and biases alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1]},
    ]
    return torch.optim.SGD(groups, lr=PEAK_RATE, momentum=0.9, nesterov=True)


def step(model: ResNet, optimizer: torch.optim.SGD, x: Tensor, y: Tensor) -> float:
    """One optimisation step; the loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x.contiguous(memory_format=torch.channels_last)).float()
    loss = functional.cross_entropy(logits, y, label_smoothing=SMOOTHING)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(model: ResNet, pixels: Tensor, labels: Tensor, epochs: int, checkpoint: Path) -> None:
    """Train for some epochs, from the checkpoint if there is one."""
    optimizer, images, first = make_optimizer(model), to_input(pixels), 0
    if checkpoint.exists():
        weights, momenta, first = torch.load(checkpoint)
        model.load_state_dict(weights)
        optimizer.load_state_dict(momenta)
        torch.manual_seed(first)  # else the first epochs' orders would come again
    steps, started = len(labels) // BATCH, time.monotonic()
    for epoch in range(first, epochs):
        side = SMALL_SIDE if epoch < SMALL_UNTIL * epochs else images.shape[-1]
        losses = []
        for at, chosen in enumerate(torch.randperm(len(labels))[: steps * BATCH].split(BATCH)):
            for group in optimizer.param_groups:
                group["lr"] = rate_at((epoch + at / steps) / epochs)
            losses.append(step(model, optimizer, augment(images[chosen], side), labels[chosen]))
        torch.save((model.state_dict(), optimizer.state_dict(), epoch + 1), checkpoint)
        print(f"epoch {epoch + 1} of {epochs}: side {side}, loss {np.mean(losses):.4f}, ", end="")
        print(f"{time.monotonic() - started:.0f} s", flush=True)


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
    for size in SIZES:
        x = functional.interpolate(to_input(images[:16]), size=(size, size), mode="bilinear")
        (actual,) = session.run(None, {"image": x.numpy()})
        np.testing.assert_allclose(actual, model(x).detach().numpy(), atol=1e-4)
        print(f"top-1 at {size}x{size}: {top1(session, images, labels, size):.4f}", flush=True)


def main() -> None:
    """Run the four stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an .npz of JPEGs")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "1" / "model.onnx")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    options = parser.parse_args()
    torch.manual_seed(0)
    model = ResNet().to(memory_format=torch.channels_last)
    train(model, *load(options.data, "train"), options.epochs, options.checkpoint)
    export(model.eval().state_dict(), len(WIDTHS), BLOCKS, options.output)
    evaluate(model, options.output, *load(options.data, "test"))


if __name__ == "__main__":
    main()
