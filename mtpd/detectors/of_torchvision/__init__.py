"""Detectors of torchvision: `torchvision:NAME`."""
