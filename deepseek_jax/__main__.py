"""`python -m deepseek_jax VERB`, also installed as the command `deepseek-jax`."""

import os
import sys

from deepseek_jax import full_disk
from deepseek_jax.cli import arguments, runtime
from deepseek_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status: 0 done, 2 an error that the user can fix, 130 interrupted, or the verb's.

    An exception that is neither a UserError nor a full device or disk is a bug of ours and keeps its traceback.
    """
    try:
        args = arguments.read(sys.argv[1:] if argv is None else argv)
        runtime.prepare(args.compile_cache, args.keep_memory)
        return args.run(args) or 0
    except UserError as error:
        print(f"deepseek-jax: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError, ValueError) as error:
        if not (full := _full(error)):
            raise
        print(f"deepseek-jax: {full}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("deepseek-jax: interrupted.", file=sys.stderr)
        return 130


def _full(error: Exception) -> str | None:
    """The message for a full disk or device; None if the error is neither."""
    if full_disk.is_said_by(error):
        return full_disk.SENTENCE
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):  # XLA had no room for an array
        return _no_room(error)
    return None


def _no_room(error: RuntimeError) -> str:
    said = str(error).removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0].split(" [")[0].rstrip(".")
    return (
        f"the device's memory is too small ({said}).  Training needs less with a smaller train.microbatch_size, over "
        "more devices, or for a language model with train.remat set to dots or full; `generate` with fewer "
        "--max-new-tokens or prompts; every verb with smaller batches or bfloat16."
    )


if __name__ == "__main__":
    sys.exit(main())
