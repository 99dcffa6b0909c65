"""Data quality checks before training: one kind of finding per file."""
