"""Sets to learn from with labels, numbers or boxes: images, text, tables and series."""
