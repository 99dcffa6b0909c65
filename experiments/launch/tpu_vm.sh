#!/bin/bash
# Cloud TPU VM, one process for each host:  experiments/launch/tpu_vm.sh NAME ZONE configs/v3_tiny.py /mnt/runs/v3_tiny
# Every host needs this checkout in ~/deepseek_jax, installed in its .venv with the extra [tpu], and the run directory
# mounted.
set -euo pipefail

name=${1:?name of the TPU} zone=${2:?its zone} config=${3:?a config} workdir=${4:?a run directory that all hosts share}
shift 4

printf -v command '%q ' .venv/bin/deepseek-jax train --config "$config" --workdir "$workdir" "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "cd deepseek_jax && exec $command"
