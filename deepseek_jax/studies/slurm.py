"""A study as a SLURM job array: one task per run, all with the same command and the task's number."""

import shlex
from pathlib import Path

from deepseek_jax.studies.runs import plan
from deepseek_jax.studies.study import Loaded, slug

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%a.log
# A task that is sent SIGTERM saves a checkpoint and is queued again; it resumes from that.
set -uo pipefail
{command} &
trap 'kill -TERM $!' TERM
wait $!; status=$?
[ $status -gt 128 ] && {{ wait $!; scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"; exit; }}
exit $status
"""


def script(loaded: Loaded, root: Path, retry: bool = False) -> str:
    """The script to pass to `sbatch`; tasks whose run is already done end at once, or failed ones if not `retry`."""
    path = shlex.quote(loaded.shown_path)
    command = (
        f'deepseek-jax study run {path} --root {shlex.quote(str(root))} --index "$SLURM_ARRAY_TASK_ID"'
        + " --retry" * retry
    )
    return SCRIPT.format(name=slug(loaded.name) or "study", last=len(plan(loaded, root)) - 1, command=command)
