"""Checks of a whole cache: its contents, whether it is intact, and queueing damaged parts for extraction."""
