"""Losses on maps that look at the annotated objects."""
