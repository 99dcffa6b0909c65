"""Training, from an experiment to a run directory.  The modules by topic:

a run           setup (all before the first step), start (the initial model), branch (from the whole state of
                another run), loop, step, program, state
model families  task (their interface to the loop), language_model, supervised, supervised_program
optimization    optimizer, schedules, muon, moments, by_depth, groups (of parameters), views (adapters, masks, rounding)
stopping        early_stopping, preemption (signals), nonfinite (where a NaN began), refusals (before the first step)
saving          checkpoint, integrity (checksums), restore, any_checkpoint (of any kind), dataset_record
reporting       recorder, metrics, sinks, bars, goodput, flops, shown (names), summary, report, plots, verdict,
                sampled_indices
scoring         evaluate, scoring, baselines, answers (pictures), samples (texts)
other tools     lr_range, batch_sizes, expert_use, abstract (without data or devices), profile, program_cache
"""
