"""The command line, one file per verb.  Verbs import jax inside their `run`, so that --help answers at once."""
