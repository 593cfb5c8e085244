"""The parts of `bench_step.py` and `bench_memory.py`."""
