"""The program that evaluates a checkpoint on an annotated set."""
