"""What a run measures and writes down, and whether it still makes sense."""
