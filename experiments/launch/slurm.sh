#!/bin/bash
# SLURM, one process for each GPU:  sbatch experiments/launch/slurm.sh configs/v3_tiny.py runs/v3_tiny [OPTIONS OF train]
#SBATCH --job-name=deepseek-jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

config=${1:?a config, such as configs/v3_tiny.py} workdir=${2:?a run directory on a file system that all nodes share}
shift 2

# On preemption, and two minutes before the time limit, SIGTERM makes the run save and end with status 75.  If one process
# fails, all of them end.  Either way this script requeues the job, nine times at most, and the run resumes from its last
# checkpoint.
#
# Status 2 means that a restart cannot help, as with a wrong option.  srun returns the highest status of all processes.
# For that to be 2, the processes need time to end by themselves (--wait): those that lose contact with another one take
# 30 seconds to notice.
srun --kill-on-bad-exit=0 --wait=60 \
  deepseek-jax train --config "$config" --workdir "$workdir" --fail-when-stopped "$@" && exit
status=$?
if [ "$status" -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 9 ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
