"""Checkpoints of a run, to resume from and to use."""
