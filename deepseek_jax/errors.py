"""What goes wrong through what a user gave, said in one sentence that tells what to do."""

import logging

# Warnings: the work went on, but the user should know.  Information: what programs may like to know of it.
LOG = logging.getLogger("deepseek_jax")


class UserError(ValueError):
    """Shown by the command line as one line (of several faults in one file: a line each), exit code 2, no traceback."""
