"""The program that exports a detector to one file."""
