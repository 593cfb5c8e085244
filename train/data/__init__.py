"""Images and annotations as batches of samples."""
