"""Losses on what RoI heads say of proposals."""
