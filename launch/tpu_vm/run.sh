#!/usr/bin/env bash
# Starts training on all VMs of a slice, in the background; has no effect while training runs. The same command after stop.sh
# resumes the run. A VM that restarts resumes by itself; a recreated slice runs the command given to create.sh.
#
#     launch/tpu_vm/run.sh --name=llava --zone=us-west4-a -- --config=configs/stage2.py --workdir=/mnt/llava/stage2
#
#   --name=NAME, --zone=ZONE, --project=ID   or TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --dry-run        prints the commands without running them
#   -- FLAGS...      of llava_jax.main
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-}
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "name zone project" "" "$@"
need name zone
((${#rest[@]})) || die "no command; add -- --config=FILE --workdir=/mnt/llava/RUN"
run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" ${project:+--project="$project"} --worker=all \
    --command="sudo bash /opt/llava/worker.sh run $(quoted "${rest[@]}")"
