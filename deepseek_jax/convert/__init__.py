"""Reading and writing the checkpoints of other programs."""
