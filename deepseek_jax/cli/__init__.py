"""The command line: one file a verb.  A verb imports jax inside its `run`, so that --help answers at once."""
