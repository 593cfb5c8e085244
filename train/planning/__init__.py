"""What a run will take: images, steps, hours, disk and memory, known before the first step."""
