"""Training: the loop, the compiled step, and what they need (optimizer, schedules, checkpoints, metrics, report)."""
