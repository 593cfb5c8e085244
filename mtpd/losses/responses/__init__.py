"""Losses on the predictions of RoI heads for proposals."""
