"""What a run measures and records, and the detection of divergence."""
