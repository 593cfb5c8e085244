"""Opens a cache and reads maps; trusts only what the manifest guarantees."""
