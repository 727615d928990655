#!/usr/bin/env bash
# A job on a Slurm cluster of GPUs; `caphuman launch --on slurm` writes the command:
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh train --config sd15 --config.base=/data/sd15 --config.data=/data/records --workdir /data/runs/1
#
# One task a node uses all of its GPUs; with --ntasks-per-node=8 (and --gpus-per-task or --gpu-bind if the cluster wants them) each
# task has one. The work folder and CAPHUMAN_CACHE (default: cache next to the work folder) are on storage that all nodes share.
# VENV is the environment with `pip install '.[train,data,cuda]'`; or CONTAINER, an image for Pyxis (srun --container-image).
# Before the time is up Slurm sends SIGTERM; training saves, leaves with 75, and the job is put back into the queue, where it resumes.
# A node that dies ends the others with other codes: they are requeued, too, up to MAX_RESTARTS times.
#SBATCH --job-name=caphuman
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

: "${VENV:=.venv}" "${MAX_RESTARTS:=20}" "${CONTAINER:=}" "${WAIT:=30}"
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir | --out) next=$((i + 1)) && folder=${!next} ;;
    --workdir=* | --out=*) folder=${!i#*=} ;;
  esac
done
# A bucket as work folder has its cache in the bucket, too.
export CAPHUMAN_CACHE=${CAPHUMAN_CACHE:-$(dirname "${folder:-./x}")/cache}
# NCCL finds its network by itself. If it does not, name the interface: export NCCL_SOCKET_IFNAME=ib0; NCCL_DEBUG=INFO says what it found.

command=("$VENV/bin/caphuman")
options=()
if [ -n "$CONTAINER" ]; then
  command=(caphuman)
  options=("--container-image=$CONTAINER" "--container-mounts=${MOUNTS:-/data:/data}")
fi

# srun's tasks find each other by Slurm's variables: caphuman_jax/runtime/distributed.py. When one ends, the others are killed after
# WAIT seconds, more than a heartbeat (15); srun's own code is the highest of theirs.
srun --kill-on-bad-exit=0 --wait="$WAIT" "${options[@]}" "${command[@]}" "$@"
code=$?
case $code in
  # finished, NaN, wrong settings, failed pictures, a fault, interrupted: starting again does not help
  0 | 1 | 2 | 3 | 70 | 130) exit "$code" ;;
esac
if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
