"""What `scripts/torture_cache.py` does to caches, one file for each kind of harm."""
