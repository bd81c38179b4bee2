#!/usr/bin/env bash
# Submits train.sbatch. Call it from the root of the repository, with the Python environment active.
#
#     launch/slurm/submit.sh --nodes=2 --gpus=8 --partition=h100 --time=12:00:00 \
#         -- --config=configs/stage2.py --workdir=/shared/run1 --config.mesh.fsdp=-1
#     launch/slurm/submit.sh --stop=JOB
#
#   --nodes=N        default: 1
#   --gpus=N         GPUs per node, all of them; default: 8
#   --cpus=N         cores per GPU; default: 8
#   --time=LIMIT     after which the job saves and is requeued; default: 24:00:00
#   --name=NAME      default: llava
#   --partition, --account, --qos   as your site requires
#   --stop=JOB       saves and ends a job; submitting it again resumes the run
#   --dry-run        prints the commands without running them
#   -- FLAGS...      of llava_jax.main
set -euo pipefail
nodes=1 gpus=8 cpus=8 time=24:00:00 name=llava partition='' account='' qos='' stop=
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "nodes gpus cpus time name partition account qos stop" "" "$@"
if [[ -n $stop ]]; then
    [[ $stop =~ ^[0-9]+$ ]] || die "--stop=$stop is not a job number"
    # A plain scancel kills after the site's KillWait, usually 30 seconds, even if the save is not complete.
    run scontrol update JobId="$stop" Requeue=0
    run scancel --signal=TERM "$stop"
    exit
fi
for number in nodes gpus cpus; do [[ ${!number} =~ ^[1-9][0-9]*$ ]] || die "--$number=${!number} is not a number"; done
((${#rest[@]})) || die "no command; add -- --config=FILE --workdir=/shared/RUN"
[[ -f launch/slurm/train.sbatch ]] || die "call it from the root of the repository, because the job runs in the current folder"
run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --cpus-per-task="$cpus" \
    --time="$time" ${partition:+--partition="$partition"} ${account:+--account="$account"} ${qos:+--qos="$qos"} \
    launch/slurm/train.sbatch "${rest[@]}"
