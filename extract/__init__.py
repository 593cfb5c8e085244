"""The program that runs a teacher once over a data set and writes a cache."""
