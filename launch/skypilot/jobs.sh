#!/usr/bin/env bash
# Managed jobs of SkyPilot (pip install 'skypilot[gcp]'; `sky check` lists the clouds that it can use).
#
#     launch/skypilot/jobs.sh launch --on=gpu --gpus=H100:8 --bucket=my-bucket \
#         -- --config=configs/stage2.py --workdir=/mnt/llava/stage2 --config.mesh.fsdp=-1
#     launch/skypilot/jobs.sh list
#     launch/skypilot/jobs.sh logs --name=llava
#     launch/skypilot/jobs.sh stop --name=llava
#
#   --on=tpu|gpu     tpu.yaml or gpu.yaml
#   --bucket=NAME    Google Cloud Storage, mounted at /mnt/llava, for the workdir
#   --gpus=SPEC      accelerators instead of the file's: tpu-v5litepod-16, A100-80GB:8 ...; `sky show-gpus` has prices
#   --nodes=N        machines; GPU only
#   --on-demand      no spot machines
#   --name=NAME      of the job; default: llava
#   --dry-run        prints the commands without running them
#   -- FLAGS...      of llava_jax.main
#
# `launch` shows the price per hour and asks for confirmation. `stop` deletes the machines, possibly without a final save; the
# run then resumes from its last checkpoint (config.checkpoint.every), as after a preemption.
set -euo pipefail
on='' bucket='' gpus='' nodes='' on_demand='' name=llava
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
case ${1-} in
launch | list | logs | stop) verb=$1 && shift ;;
--help | -h) usage && exit ;;
*) die "expected launch, list, logs or stop; see --help" ;;
esac
flags "on bucket gpus nodes name" "on-demand" "$@"
case $verb in
launch)
    need on bucket
    [[ $on == tpu || $on == gpu ]] || die "--on=$on is neither tpu nor gpu"
    [[ -z $nodes || ($nodes =~ ^[1-9][0-9]*$ && $on == gpu) ]] || die "--nodes=$nodes must be a number, and needs --on=gpu"
    ((${#rest[@]})) || die "no command; add -- --config=FILE --workdir=/mnt/llava/RUN"
    [[ -f launch/skypilot/$on.yaml ]] || die "call it from the root of the repository, which is uploaded"
    run sky jobs launch --name="$name" --env="BUCKET=${bucket#gs://}" --env="FLAGS=$(quoted "${rest[@]}")" \
        ${gpus:+--gpus="$gpus"} ${nodes:+--num-nodes="$nodes"} ${on_demand:+--no-use-spot} "launch/skypilot/$on.yaml"
    ;;
list) run sky jobs queue ;;
logs) run sky jobs logs --name="$name" ;;
stop) run sky jobs cancel --name="$name" --yes ;;
esac
