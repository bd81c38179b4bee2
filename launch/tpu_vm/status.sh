#!/usr/bin/env bash
# Shows whether the slice exists, and the state of training on each VM: active, inactive (finished or stopped) or failed, with
# the exit code.
#
#     launch/tpu_vm/status.sh --name=llava --zone=us-west4-a
#
#   --name=NAME, --zone=ZONE, --project=ID   or TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --dry-run        prints the commands without running them
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-}
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "name zone project" "" "$@"
need name zone
where=(--zone="$zone" ${project:+--project="$project"})
run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format="yaml(name,state)"
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="sudo bash /opt/llava/worker.sh status"
