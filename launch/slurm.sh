#!/usr/bin/env bash
# Training on a Slurm cluster of GPUs: one task a node, which uses all GPUs of the node.
#
#   sbatch --nodes=4 launch/slurm.sh --config sd15 --config.base=/data/sd15 --config.data=/data/records --workdir /data/runs/1
#
# VENV is the environment with `pip install '.[train,data,cuda]'`. Before the time is up Slurm sends SIGTERM; training saves, leaves with
# code 75, and the job is put back into the queue, where it goes on from the checkpoint.
#SBATCH --job-name=caphuman
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

: "${VENV:=.venv}"

# srun's tasks find each other by Slurm's variables: caphuman_jax/runtime/distributed.py.
srun --kill-on-bad-exit=0 "$VENV/bin/caphuman" train "$@"
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
