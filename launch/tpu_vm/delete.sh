#!/usr/bin/env bash
# Deletes a slice, or its place in the queue; from then on it costs nothing. What is below /mnt/llava stays, what is elsewhere
# on the VMs is gone. Stops the run first, so that it saves; --now does not.
#
#     launch/tpu_vm/delete.sh --name=llava --zone=us-west4-a
#
#   --name=NAME, --zone=ZONE, --project=ID   or TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --now            without stopping the run; also where the VMs do not answer any more
#   --dry-run        prints what would be done, and does nothing
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-} now=
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "name zone project" "now" "$@"
need name zone
[[ -n $now ]] || bash "$(dirname "$0")/stop.sh" --name="$name" --zone="$zone" ${project:+--project="$project"} \
    ${dry_run:+--dry-run} || { echo "error: it could not be stopped; --now deletes it all the same" >&2 && exit 1; }
run gcloud compute tpus queued-resources delete "$name" --zone="$zone" ${project:+--project="$project"} --force --quiet
