"""Training of the hybrid network on labelled sets: task, program, and its baselines and pictures of answers."""
