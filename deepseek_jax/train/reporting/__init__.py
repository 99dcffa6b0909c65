"""What a person sees of a run, from its rows of metrics: bars, sinks, summary, report with its plots and verdict."""
