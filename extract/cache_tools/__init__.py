"""The program that inspects, verifies and repairs caches."""
