#!/usr/bin/env bash
# Training on a TPU VM slice, or several (multi-slice): the same command on every host.
#
#   TPU=my-v5e-256 ZONE=us-west4-a PROJECT=my-project REPOSITORY=https://…/caphuman_jax.git \
#     launch/tpu_vm.sh --config sd15 --config.base=/data/sd15 --config.data=/data/records --workdir /data/runs/1
#
# WORKDIR, records and base have to be folders that all hosts share (Filestore, or a bucket mounted with gcsfuse on all of them).
# A slice that was taken away is made again by the queued resource; then run this again.
set -euo pipefail

: "${TPU:?name of the TPU VM or queued resource node}" "${ZONE:?its zone}" "${REPOSITORY:?git URL of this project}"
: "${PROJECT:=$(gcloud config get-value project)}" "${BRANCH:=main}"

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --project "$PROJECT" --worker=all --command "$1"
}

# Arguments travel through one more shell: quoted for it.
arguments=$(printf ' %q' "$@")

everywhere "set -e
  test -d caphuman_jax || git clone --branch $(printf %q "$BRANCH") $(printf %q "$REPOSITORY") caphuman_jax
  cd caphuman_jax && git fetch --quiet && git checkout --quiet $(printf %q "$BRANCH") && git pull --quiet --ff-only
  test -x .venv/bin/python || python3 -m venv .venv
  .venv/bin/pip install --quiet --prefer-binary --constraint constraints.txt --editable '.[train,data,tpu]'"

# 75: told to stop (maintenance, preemption) after saving. All hosts leave with it together, so each starts again by itself.
everywhere "cd caphuman_jax && code=75 && while [ \$code -eq 75 ]; do code=0; .venv/bin/caphuman train --multihost$arguments || code=\$?; done; exit \$code"
