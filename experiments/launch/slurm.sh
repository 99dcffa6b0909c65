#!/bin/bash
# SLURM, a process for each GPU:  sbatch experiments/launch/slurm.sh configs/v3_tiny.py runs/v3_tiny [OPTIONS OF train]
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

# Preempted, or two minutes before the time is up, SIGTERM makes the run save and end with status 75; where one process
# fails all are ended.  Either way the job queues again here, nine times at most, and goes on from the last checkpoint.
#
# Status 2 is of what no restart mends, such as a wrong option.  srun gives the highest of all processes: to be 2, they
# need the time to end by themselves, which those that miss another one take 30 seconds for.
srun --kill-on-bad-exit=0 --wait=60 \
  deepseek-jax train --config "$config" --workdir "$workdir" --fail-when-stopped "$@" && exit
status=$?
if [ "$status" -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 9 ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
