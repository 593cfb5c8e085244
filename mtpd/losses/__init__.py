"""Losses between the maps of a student and the cached maps of its teacher, and the matching of their levels."""
