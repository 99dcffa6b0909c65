"""What goes wrong through what a user gave, said in one sentence that tells what to do."""

import logging

LOG = logging.getLogger("deepseek_jax")  # warnings: the work went on, but the user should know


class UserError(ValueError):
    """Shown by the command line as one line (of several faults in one file: a line each), exit code 2, no traceback."""
