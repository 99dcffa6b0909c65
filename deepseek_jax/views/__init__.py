"""Weights that differ from the trained arrays: adapters beside them, masks over them, rounding; see view.py."""
