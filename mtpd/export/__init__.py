"""Detectors as one file, from uint8 images to boxes, and such files as detectors."""
