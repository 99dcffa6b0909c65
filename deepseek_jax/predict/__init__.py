"""Answers of a trained hybrid network for files and rows that a user names."""
