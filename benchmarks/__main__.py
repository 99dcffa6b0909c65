"""All the benchmarks: training, decoding, and the start of a run, beside the rivals at hand."""

from benchmarks import decode_speed, options, startup, train_speed

options.run(__doc__, train_speed.measure, decode_speed.measure, startup.measure)
