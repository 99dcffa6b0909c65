"""Runs the main benchmarks: training, decoding, and the start of a run, against the rivals that are installed."""

from benchmarks import decode_speed, options, startup, train_speed

options.run(__doc__, train_speed.measure, decode_speed.measure, startup.measure)
