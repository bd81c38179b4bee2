#!/usr/bin/env bash
# Managed jobs of SkyPilot (pip install 'skypilot[gcp]'; `sky check` says which clouds it can use).
#
#     launch/skypilot/jobs.sh launch --on=gpu --gpus=H100:8 --bucket=my-bucket \
#         -- --config=configs/stage2.py --workdir=/mnt/llava/stage2 --config.mesh.fsdp=-1
#     launch/skypilot/jobs.sh list
#     launch/skypilot/jobs.sh logs --name=llava
#     launch/skypilot/jobs.sh stop --name=llava
#
#   --on=tpu|gpu     tpu.yaml or gpu.yaml
#   --bucket=NAME    Google Cloud Storage, mounted at /mnt/llava, for the workdir
#   --gpus=SPEC      other accelerators than the file's: tpu-v5litepod-16, A100-80GB:8 ...; `sky show-gpus` has prices
#   --nodes=N        machines; GPU only
#   --on-demand      no spot machines
#   --name=NAME      of the job; default: llava
#   --dry-run        prints what would be done, and does nothing
#   -- FLAGS...      of llava_jax.main
#
# `launch` shows the price of an hour, and asks. `stop` deletes the machines; SkyPilot may not let the run save, which then
# goes on from the last checkpoint (config.checkpoint.every), as it does after a preemption.
set -euo pipefail
on='' bucket='' gpus='' nodes='' on_demand='' name=llava
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
case ${1-} in
launch | list | logs | stop) verb=$1 && shift ;;
--help | -h) usage && exit ;;
*) die "launch, list, logs or stop? --help says more" ;;
esac
flags "on bucket gpus nodes name" "on-demand" "$@"
case $verb in
launch)
    need on bucket
    [[ $on == tpu || $on == gpu ]] || die "--on=$on is neither tpu nor gpu"
    [[ -z $nodes || ($nodes =~ ^[1-9][0-9]*$ && $on == gpu) ]] || die "--nodes=$nodes: a number, and of GPU machines"
    ((${#rest[@]})) || die "what is to run? -- --config=FILE --workdir=/mnt/llava/RUN"
    [[ -f launch/skypilot/$on.yaml ]] || die "to be called from the root of the repository: that folder is what is uploaded"
    run sky jobs launch --name="$name" --env="BUCKET=${bucket#gs://}" --env="FLAGS=$(quoted "${rest[@]}")" \
        ${gpus:+--gpus="$gpus"} ${nodes:+--num-nodes="$nodes"} ${on_demand:+--no-use-spot} "launch/skypilot/$on.yaml"
    ;;
list) run sky jobs queue ;;
logs) run sky jobs logs --name="$name" ;;
stop) run sky jobs cancel --name="$name" --yes ;;
esac
