"""This package as a contestant."""
