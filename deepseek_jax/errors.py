"""What goes wrong through what a user gave, said in one sentence that tells what to do."""

import logging

LOG = logging.getLogger("deepseek_jax")  # of what a user should know that was done all the same


class UserError(ValueError):
    """Shown by the command line as one line (of several faults in one file: a line each), exit code 2, no traceback."""
