#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it through a queued resource, sets up every worker, and runs
# `vlrep train` on all of them. Run it again after a preemption: it asks for a new slice.
#
#   PROJECT=p ZONE=us-central2-b launch/tpu_pod.sh NAME v4-256 gs://BUCKET/RUN configs/clip_vit_b16.py \
#     --config.data.source.path=gs://BUCKET/DATA
#
# SPOT=1 asks for spot capacity, SLICES=n for n slices, RUNTIME=... for another image. Extra words
# go to `vlrep train`. It needs gcloud, and ends with the exit code of the run.
set -euo pipefail

if (($# < 4)); then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 type=$2 workdir=$3 config=$4
shift 4
if [[ -z ${PROJECT:-} || -z ${ZONE:-} ]]; then
  echo "$0: set PROJECT to the Google Cloud project, and ZONE, such as us-central2-b" >&2
  exit 2
fi
readonly stopped=42 source="${SOURCE:-$(cd "$(dirname "$0")/.." && pwd)}"
slices=${SLICES:-1}
where=(--project="$PROJECT" --zone="$ZONE")

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || echo MISSING
}

# One slice is a node of the resource's name; several are name-0, name-1, ...
nodes() {
  if ((slices == 1)); then
    echo "$name"
  else
    for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
  fi
}

ask() {
  local options=(--accelerator-type="$type" --runtime-version="${RUNTIME:-tpu-ubuntu2204-base}")
  if ((slices == 1)); then
    options+=(--node-id="$name")
  else
    options+=(--node-count="$slices" --node-prefix="$name")
  fi
  if [[ -n ${SPOT:-} ]]; then options+=(--spot); fi
  gcloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}"
}

# A command on all workers of all slices at once; fails with the code of the first that failed.
everywhere() {
  local pids=() code=0 node
  for node in $(nodes); do
    gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command="$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
  return "$code"
}

while true; do
  case $(state) in
    MISSING) ask ;;
    SUSPENDED | SUSPENDING | FAILED)
      gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
      continue
      ;;
    ACTIVE) break ;;
  esac
  sleep 30
done

for node in $(nodes); do
  gcloud compute tpus tpu-vm scp --recurse "$source" "$node":vlrep_jax "${where[@]}" --worker=all
done
everywhere "cd vlrep_jax && pip install --quiet -e '.[tpu]'"

printf -v command '%q ' vlrep train "--config=$config" "--workdir=$workdir" "$@"
# Where it stopped of itself (42), as when a worker is about to be maintained, it is started again.
remote="cd vlrep_jax && export PATH=\$HOME/.local/bin:\$PATH; while true; do $command; code=\$?; \
[[ \$code == $stopped && ! -e ~/vlrep-stop ]] || exit \$code; done"
everywhere "rm -f ~/vlrep-stop"
everywhere "bash -c $(printf '%q' "$remote")" &
run=$!
# SIGTERM or Ctrl-C here stops the run there, which saves and ends with 42. The pattern is of the
# program, whose name has a directory before it, and not of the loop around it.
trap 'told=1; everywhere "touch ~/vlrep-stop; pkill -TERM -f [b]in/vlrep.train || true"' TERM INT
# A trap ends the wait, which then says 128 and more, whether or not the run has ended meanwhile.
told=1
while ((told)); do
  told=0 code=0
  wait "$run" || code=$?
done
exit "$code"
