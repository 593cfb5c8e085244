"""Detectors and teachers from a user's own file: `file.py:callable`."""
