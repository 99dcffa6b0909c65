"""Errors caused by what a user gave, each reported in one sentence that says what to do."""

import logging

# WARNING: the work went on, but the user should know.  INFO: details that calling programs may want.
LOG = logging.getLogger("deepseek_jax")


class UserError(ValueError):
    """Shown by the command line as one line (one each for several faults in a file), exit code 2, no traceback."""
