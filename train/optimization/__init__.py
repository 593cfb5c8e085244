"""Optimizer, schedule, averaged weights."""
