"""How fast the package is, beside programs that do the same."""
