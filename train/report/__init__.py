"""The program that shows runs: as a page, as a comparison table, as TensorBoard event files."""
