"""Settings of stage files, and reading them."""
