"""Filling a cache: locks, journal, shard groups, publication, joining parts."""
