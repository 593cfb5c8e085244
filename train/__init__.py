"""The program that trains students: stage files, the training loop and what it writes."""
