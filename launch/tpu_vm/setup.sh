#!/usr/bin/env bash
# Installs the program on all VMs of a slice, or updates it to another --ref; VMs from create.sh install it by themselves.
# Stop the run first.
#
#     launch/tpu_vm/setup.sh --name=llava --zone=us-west4-a --source=https://github.com/ME/llava_jax.git --mount=10.0.0.2:/share
#
#   --name, --zone, --project, --source, --ref, --mount   as create.sh
#   --dry-run        prints the commands without running them
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
