"""What `bench_cache_read.py` reads, and how."""
