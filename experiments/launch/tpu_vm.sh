#!/bin/bash
# Cloud TPU VM, a process for each host:  experiments/launch/tpu_vm.sh NAME ZONE configs/v3_tiny.py /mnt/runs/v3_tiny
# Every host has this checkout, installed with the extra [tpu], in ~/deepseek_jax and the run directory mounted.
set -euo pipefail

name=${1:?name of the TPU} zone=${2:?its zone} config=${3:?a config} workdir=${4:?a run directory that all hosts share}
shift 4

printf -v command '%q ' .venv/bin/deepseek-jax train --config "$config" --workdir "$workdir" "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "cd deepseek_jax && exec $command"
