#!/usr/bin/env bash
# Shows the log of the run. Process 0 logs the training; the others log only why they ended.
#
#     launch/tpu_vm/logs.sh --name=llava --zone=us-west4-a --follow
#
#   --name=NAME, --zone=ZONE, --project=ID   or TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --worker=N       index of the VM, or all; default: 0, which runs process 0
#   --lines=N        number of lines from the end; default: 100
#   --follow         keeps printing until Ctrl-C
#   --dry-run        prints the commands without running them
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-} worker=0 lines=100 follow=
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "name zone project worker lines" "follow" "$@"
need name zone
[[ $lines =~ ^[0-9]+$ ]] || die "--lines=$lines is not a number"
[[ $worker =~ ^([0-9]+|all)$ ]] || die "--worker=$worker is neither a number nor all"
run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" ${project:+--project="$project"} --worker="$worker" \
    --command="sudo tail -n $lines ${follow:+-F }/var/log/llava.log"
