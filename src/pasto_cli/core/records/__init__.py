"""What is written to disk: typed, strict, without torch."""
