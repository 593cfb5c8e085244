"""The program that shows runs: as a page, as a table beside others, as TensorBoard's event files."""
