#!/usr/bin/env bash
# A job on TPU VMs, one slice or several, by queued resources: asks for the machines, waits, installs, starts, follows, and starts again
# on new machines when spot ones are taken away. Run it where it can stay (tmux, a small VM); the job itself runs detached on the TPU VMs.
# `caphuman launch --on tpu-vm` writes the command:
#
#   NAME=run-1 ZONE=us-west4-a TYPE=v5litepod-16 REPOSITORY=https://…/caphuman_jax.git BUCKET=my-bucket SPOT=true \
#     launch/tpu_vm.sh train --config sd15 --config.base=/data/sd15 --config.data=/data/records --workdir /data/runs/1
#
# ACTION    start (default) or resume; follow: only show what runs; stop: save and end it
# ENVIRONMENT  NAME=VALUE words for the job, quoted for a shell
# SLICES=2 makes a multislice job. BUCKET is mounted at /data on every host with gcsfuse; work folder, records and compiled programs lie there.
# The machines stay after the run: gcloud compute tpus queued-resources delete NAME --force --zone ZONE
set -euo pipefail

: "${ACTION:=start}" "${NAME:?name of the queued resource}" "${ZONE:?its zone}" "${TYPE:?type of a slice, such as v5litepod-16}"
: "${REPOSITORY:?git URL of this project}" "${BUCKET:?bucket that is mounted at /data}"
: "${PROJECT:=$(gcloud config get-value project)}" "${BRANCH:=main}" "${SLICES:=1}" "${SPOT:=false}" "${VERSION:=v2-alpha-tpuv5-lite}" "${POLL:=30}"
: "${MAX_RESTARTS:=10}" "${ENVIRONMENT:=}"
common=(--zone "$ZONE" --project "$PROJECT")

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${common[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  local options=(--accelerator-type "$TYPE" --runtime-version "$VERSION")
  if [ "$SLICES" -gt 1 ]; then
    options+=(--node-prefix "$NAME" --node-count "$SLICES")
  else
    options+=(--node-id "$NAME")
  fi
  if [ "$SPOT" = true ]; then options+=(--spot); fi
  gcloud compute tpus queued-resources create "$NAME" "${common[@]}" "${options[@]}"
}

everywhere() {
  if [ "$SLICES" -gt 1 ]; then
    gcloud compute tpus queued-resources ssh "$NAME" "${common[@]}" --node=all --worker=all --command "$1"
  else
    gcloud compute tpus tpu-vm ssh "$NAME" "${common[@]}" --worker=all --command "$1"
  fi
}

wait_until_active() {
  while true; do
    case $(state) in
      ACTIVE) return ;;
      NONE) create ;;
      SUSPENDED | FAILED) # taken away, or never given: made again
        gcloud compute tpus queued-resources delete "$NAME" "${common[@]}" --force --quiet
        ;;
    esac
    sleep "$POLL"
  done
}

# Arguments travel through one more shell: quoted for it. uv brings its own Python: that of the images is too old.
arguments=$(printf ' %q' "$@")
install="set -e
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  export PATH=\$HOME/.local/bin:\$PATH
  test -d caphuman_jax || git clone --branch $(printf %q "$BRANCH") $(printf %q "$REPOSITORY") caphuman_jax
  cd caphuman_jax && git fetch --quiet && git checkout --quiet $(printf %q "$BRANCH") && git pull --quiet --ff-only
  test -x .venv/bin/python || uv venv --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[train,tpu]'
  if ! mountpoint --quiet /data; then
    command -v gcsfuse >/dev/null || {
      echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      curl -sSf https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
      sudo apt-get -qq update && sudo apt-get -qq install --yes gcsfuse
    }
    sudo mkdir -p /data && sudo chown \$(id -u) /data && gcsfuse --implicit-dirs --rename-dir-limit 200000 $(printf %q "$BUCKET") /data
  fi"
# Detached, so that a lost connection does not end it. 75 is "start me again" and 128 or more a host that was lost or lost another; 130
# is Ctrl-C. The hosts of `train` and `doctor` find each other; those of `sample` share out the work.
several=
case ${1:-} in train | doctor) several=" --multihost" ;; esac
start="cd caphuman_jax && export CAPHUMAN_CACHE=/data/cache $ENVIRONMENT && rm -f job.code && (setsid nohup bash -c '
  stopped=; trap \"stopped=1\" TERM; starts=0
  while true; do
    code=0; .venv/bin/caphuman$(printf %s "$arguments" | sed "s/'/'\\\\''/g")$several || code=\$?
    starts=\$((starts + 1))
    case \$code in 75 | 129 | 13[1-9] | 1[4-9]*) ;; *) break ;; esac
    if [ -n \"\$stopped\" ] || [ \$starts -gt $MAX_RESTARTS ]; then break; fi
  done
  echo \$code > job.code' >job.log 2>&1 & echo \$! >job.pid)"
follow="cd caphuman_jax && while [ ! -e job.code ]; do tail -n 1 job.log; sleep $POLL; done; tail -n 20 job.log; exit \$(cat job.code)"
# Training saves and leaves with 75; the loop above ends, too.
stop="cd caphuman_jax && kill -TERM -- -\$(cat job.pid) && while [ ! -e job.code ]; do sleep 1; done; tail -n 3 job.log"

case $ACTION in
  start | resume) ;;
  follow) everywhere "$follow" && exit 0 || exit $? ;;
  stop) everywhere "$stop" && exit 0 || exit $? ;;
  *) echo "ACTION is start, resume, follow or stop, not $ACTION" >&2 && exit 2 ;;
esac

while true; do
  wait_until_active
  code=0
  { everywhere "$install" && everywhere "$start" && everywhere "$follow"; } || code=$?
  # As long as the machines are there, the code is the job's own (or ssh's, 255, after which following again is enough).
  if [ "$code" -eq 0 ]; then exit 0; fi
  if [ "$(state)" = ACTIVE ] && [ "$code" -ne 255 ]; then exit "$code"; fi
done
