"""Encoders that show feature maps: mosaics, heat maps, overlays, components; decided by a `Drawing`."""

from service.output.pictures.checks import check, working_bytes
from service.output.pictures.draw import Drawn, draw
from service.output.pictures.overlay import Backdrop

__all__ = ["Backdrop", "Drawn", "check", "draw", "working_bytes"]
