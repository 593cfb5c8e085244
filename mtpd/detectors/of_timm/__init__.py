"""Backbones of timm, vision foundation models among them, as teachers: `timm:NAME`."""
