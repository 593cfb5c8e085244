"""What stage files may say, and reading them."""
