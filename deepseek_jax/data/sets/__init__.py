"""Datasets for supervised learning: images, texts, tables and time series with classes, numbers or boxes as targets."""
