#!/usr/bin/env bash
# Submits train.sbatch, from the root of the repository, with the Python environment active that is to be used.
#
#     launch/slurm/submit.sh --nodes=2 --gpus=8 --partition=h100 --time=12:00:00 \
#         -- --config=configs/stage2.py --workdir=/shared/run1 --config.mesh.fsdp=-1
#     launch/slurm/submit.sh --stop=JOB
#
#   --nodes=N        default: 1
#   --gpus=N         of a node, all of them; default: 8
#   --cpus=N         cores for each GPU; default: 8
#   --time=LIMIT     after which it saves and is queued again; default: 24:00:00
#   --name=NAME      default: llava
#   --partition, --account, --qos   as your site wants them
#   --stop=JOB       ends a job for good, after saving; the same submission later continues the run
#   --dry-run        prints what would be done, and does nothing
#   -- FLAGS...      of llava_jax.main
set -euo pipefail
nodes=1 gpus=8 cpus=8 time=24:00:00 name=llava partition='' account='' qos='' stop=
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "nodes gpus cpus time name partition account qos stop" "" "$@"
if [[ -n $stop ]]; then
    [[ $stop =~ ^[0-9]+$ ]] || die "--stop=$stop is no number of a job"
    # A plain scancel kills after the site's KillWait, 30 seconds mostly, saved or not.
    run scontrol update JobId="$stop" Requeue=0
    run scancel --signal=TERM "$stop"
    exit
fi
for number in nodes gpus cpus; do [[ ${!number} =~ ^[1-9][0-9]*$ ]] || die "--$number=${!number} is no number"; done
((${#rest[@]})) || die "what is to run? -- --config=FILE --workdir=/shared/RUN"
[[ -f launch/slurm/train.sbatch ]] || die "to be called from the root of the repository: the job runs where it is submitted"
run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --cpus-per-task="$cpus" \
    --time="$time" ${partition:+--partition="$partition"} ${account:+--account="$account"} ${qos:+--qos="$qos"} \
    launch/slurm/train.sbatch "${rest[@]}"
