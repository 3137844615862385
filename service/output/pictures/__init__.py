"""Encoders that show feature maps: mosaics, heat maps, overlays, components; decided by a `Drawing`."""

from service.output.pictures.checks import check
from service.output.pictures.draw import Drawn, draw
from service.output.pictures.overlay import Backdrop

__all__ = ["Backdrop", "Drawn", "check", "draw"]
