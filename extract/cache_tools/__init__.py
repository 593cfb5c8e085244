"""The program that looks at caches, proves them sound and mends them."""
