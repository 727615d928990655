#!/usr/bin/env bash
# Fills in launch/gke_gpu.yaml or launch/gke_tpu.yaml and prints the manifest; arguments are those of `caphuman train`.
#
# GPUs (nodes of 8 H100):
#   RUN=run-1 IMAGE=REGISTRY/caphuman BUCKET=my-bucket ACCELERATOR=nvidia-h100-80gb NODES=4 GPUS=8 \
#     launch/gke.sh gpu --config sd15 --config.base=/data/sd15 --config.data=/data/records --workdir /data/runs/1 | kubectl apply -f -
# TPUs (two slices v5e-16 of four hosts with four chips):
#   RUN=run-1 IMAGE=REGISTRY/caphuman BUCKET=my-bucket ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 SLICES=2 NODES=4 CHIPS=4 \
#     launch/gke.sh tpu --config sd15 --config.base=/data/sd15 --config.data=/data/records --workdir /data/runs/1 | kubectl apply -f -
#
# SPOT=true takes spot nodes. The cluster needs JobSet and the gcsfuse CSI driver; QUEUE is a local queue of Kueue where that is used.
# The same command after `kubectl delete jobset $RUN` resumes from the last checkpoint.
set -euo pipefail

kind=${1:?gpu or tpu}
shift
: "${RUN:?name of the run}" "${IMAGE:?image of launch/Dockerfile}" "${BUCKET:?bucket that is mounted at /data}"
: "${ACCELERATOR:?type of accelerator, as the node label says it}" "${NODES:?nodes, or hosts of a slice}"
case $kind in
  gpu) : "${GPUS:?GPUs of a node}" ;;
  tpu) : "${CHIPS:?chips of a host}" "${TOPOLOGY:?topology of a slice, such as 4x4}" "${SLICES:=1}" ;;
  *) echo "first argument: gpu or tpu, not $kind" >&2; exit 2 ;;
esac
: "${SERVICE_ACCOUNT:=default}" "${QUEUE:=default}" "${SPOT:=false}" "${MAX_RESTARTS:=10}"
SPOT_SELECTOR="# any node, spot or not"
if [ "$SPOT" = true ]; then SPOT_SELECTOR='cloud.google.com/gke-spot: !!str true'; fi
# Arguments as a JSON list, which is YAML too: nothing is quoted twice.
ARGUMENTS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
export RUN IMAGE BUCKET ACCELERATOR NODES GPUS CHIPS TOPOLOGY SLICES SERVICE_ACCOUNT QUEUE SPOT_SELECTOR MAX_RESTARTS ARGUMENTS
python3 -c 'import os, string, sys; print(string.Template(open(sys.argv[1]).read().split("\napiVersion", 1)[1]).substitute(os.environ).join(["apiVersion", ""]), end="")' \
  "$(dirname "$0")/gke_$kind.yaml"
