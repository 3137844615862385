"""The image that benchmarks send."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def drawn_image(width: int = 640, height: int = 480) -> bytes:
    """Draw a JPEG of about 100 kB: sky, sun, a house and a photograph's grain; always the same bytes."""
    rng = np.random.default_rng(0)
    sky = np.linspace([90, 140, 220], [230, 220, 200], height)[:, None, :] + np.zeros((1, width, 1))
    picture = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width * 0.7, height * 0.1, width * 0.9, height * 0.35), fill=(250, 220, 60))
    draw.rectangle((width * 0.2, height * 0.5, width * 0.55, height * 0.9), fill=(160, 60, 50))
    roof = [(width * 0.15, height * 0.5), (width * 0.38, height * 0.25), (width * 0.6, height * 0.5)]
    draw.polygon(roof, (70, 40, 40))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1)), np.int16)
    grain = rng.integers(-12, 13, soft.shape, np.int16)
    stream = io.BytesIO()
    Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=93)
    return stream.getvalue()


def numbered(image: bytes, number: int) -> bytes:
    """Append a number that decoders ignore, so that the service does not coalesce requests.

    The number is in a box called `free`, which AVIF allows at the end; all other formats ignore what
    follows their end.
    """
    return image + b"\x00\x00\x00\x10free" + number.to_bytes(8, "big")
