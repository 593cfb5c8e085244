"""The generated pages of the documentation; see scripts/build_reference.py."""
