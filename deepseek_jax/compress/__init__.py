"""Models made smaller: pruned, rounded to few bits, and trained so that they bear it."""
