"""Detectors, U-Nets and segmentation heads of the kinds that Ultralytics and torchvision export."""

DETECTORS = {}
