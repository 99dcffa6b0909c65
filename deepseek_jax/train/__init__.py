"""Training, from an experiment to a run directory.  What lies where:

a run           setup (all before the first step), start (what it begins from), loop, step, program, state
a family        task (what the loop asks of one), language_model, supervised, supervised_program
how it moves    optimizer, schedules, muon, moments, by_depth, groups (of parameters), views (what is trained instead)
when it ends    early_stopping, preemption (signals), nonfinite (where a NaN began), refusals (before it begins)
what is kept    checkpoint, integrity (checksums), restore, any_checkpoint (of any kind), known_set (dataset.json)
what is told    recorder, metrics, sinks, bars, goodput, flops, shown (names), summary, report, plots, verdict, places
what it scores  evaluate, scoring, baselines, answers (pictures), samples (texts)
beside a run    lr_range, batch_sizes, expert_use, abstract (without data or devices), profile, program_cache
"""
