#!/usr/bin/env bash
# Deletes a slice or its queued request; it costs nothing from then on. Files under /mnt/llava stay, all others on the VMs
# are lost. Stops the run first, so that it saves; --now does not.
#
#     launch/tpu_vm/delete.sh --name=llava --zone=us-west4-a
#
#   --name=NAME, --zone=ZONE, --project=ID   or TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --now            deletes without stopping the run, also if the VMs do not answer
#   --dry-run        prints the commands without running them
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-} now=
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "name zone project" "now" "$@"
need name zone
[[ -n $now ]] || bash "$(dirname "$0")/stop.sh" --name="$name" --zone="$zone" ${project:+--project="$project"} \
    ${dry_run:+--dry-run} || { echo "error: the run could not be stopped; --now deletes the slice anyway" >&2 && exit 1; }
run gcloud compute tpus queued-resources delete "$name" --zone="$zone" ${project:+--project="$project"} --force --quiet
