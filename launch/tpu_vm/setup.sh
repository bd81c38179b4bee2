#!/usr/bin/env bash
# Installs the program on all VMs of a slice, again or for the first time; what create.sh has them do by themselves. A newer
# --ref is installed over an older one. Stop the run first.
#
#     launch/tpu_vm/setup.sh --name=llava --zone=us-west4-a --source=https://github.com/ME/llava_jax.git --mount=10.0.0.2:/share
#
#   --name, --zone, --project, --source, --ref, --mount   as create.sh
#   --dry-run        prints what would be done, and does nothing
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-} source='' ref=main mount=''
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "name zone project source ref mount" "" "$@"
need name zone source mount
where=(--zone="$zone" ${project:+--project="$project"} --worker=all)
settings=$(quoted "LLAVA_SOURCE=$source" "LLAVA_REF=$ref" "LLAVA_MOUNT=$mount")
run gcloud compute tpus tpu-vm scp "$(dirname "$0")/worker.sh" "$name:/tmp/llava_worker.sh" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="sudo $settings bash /tmp/llava_worker.sh setup"
