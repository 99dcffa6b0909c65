"""`python -m deepseek_jax VERB`, also installed as the command `deepseek-jax`."""

import errno
import os
import sys

from deepseek_jax.cli import arguments
from deepseek_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run one verb; gives the exit status: 0 done, 2 the user can mend it, 130 interrupted.

    An exception that is neither a UserError nor a full device or disk is a bug of ours: it keeps its traceback.
    """
    try:
        args = arguments.read(sys.argv[1:] if argv is None else argv)
        args.run(args)
        return 0
    except UserError as error:
        print(f"deepseek-jax: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # what XLA says when an array finds no room
            raise
        print(f"deepseek-jax: {_no_room(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        what = "what was being written is not whole; remove it, make room, and run this again"
        print(f"deepseek-jax: the disk is full: {what}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("deepseek-jax: interrupted.", file=sys.stderr)
        return 130


def _no_room(error: RuntimeError) -> str:
    said = str(error).removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0].split(" [")[0].rstrip(".")
    return (
        f"the device's memory is too small ({said}).  Training needs less with a smaller train.microbatch_size, with "
        "train.remat set to dots or full, or over more devices; every verb with smaller batches or bfloat16."
    )


if __name__ == "__main__":
    sys.exit(main())
