"""What students learn from: the maps and the RoI head of a teacher, out of its cache or in the loop."""
