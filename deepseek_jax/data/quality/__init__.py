"""What is wrong with data before a model learns it: one kind of finding a file."""
