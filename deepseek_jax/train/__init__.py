"""Training, from an experiment to a run directory.  The modules by topic:

a run           setup (all before the first step), start (the initial model), branch (from the whole state of
                another run), loop, step, program, state, program_cache
model families  task (their interface to the loop), language_model, supervised/
optimization    optim/ (optimizer, schedules, groups of parameters), views (adapters, masks, rounding)
stopping        early_stopping, preemption (signals), nonfinite (where a NaN began), refusals (before the first step)
saving          checkpoints/
measuring       metrics, flops, goodput, recorder, profile; reporting/ shows it
scoring         evaluate, scoring, samples (texts)
other tools     lr_range, batch_sizes, expert_use, abstract (without data or devices)
"""
