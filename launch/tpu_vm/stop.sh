#!/usr/bin/env bash
# Stops training on all VMs with SIGTERM, so that it saves. The slice stays, and costs money, until delete.sh. Training does not
# resume by itself, not even after a VM restarts; run.sh resumes it.
#
#     launch/tpu_vm/stop.sh --name=llava --zone=us-west4-a
#
#   --name=NAME, --zone=ZONE, --project=ID   or TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --dry-run        prints the commands without running them
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-}
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "name zone project" "" "$@"
need name zone
run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" ${project:+--project="$project"} --worker=all \
    --command="sudo bash /opt/llava/worker.sh stop"
