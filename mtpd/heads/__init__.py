"""Detection heads of teachers, restored from what a cache holds, in plain PyTorch."""
