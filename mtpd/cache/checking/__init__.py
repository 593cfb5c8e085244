"""Looking at a whole cache: what is in it, whether it is sound, and queueing what is not."""
