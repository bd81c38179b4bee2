#!/usr/bin/env bash
# Alternative to jobset.yaml: xpk writes the JobSet and requests the slice from Kueue (pip install xpk; needs a cluster from
# `xpk cluster create` or `adapt`).
#
#     launch/gke/xpk.sh create --cluster=C --zone=us-west4-a --name=llava --type=v5litepod-16 --image=IMAGE --storage=workdir \
#         -- --config=configs/stage2.py --workdir=/mnt/llava/stage2
#     launch/gke/xpk.sh list --cluster=C --zone=us-west4-a
#     launch/gke/xpk.sh delete --cluster=C --zone=us-west4-a --name=llava
#
#   --cluster=NAME --zone=ZONE --project=ID   of the GKE cluster; or XPK_CLUSTER, XPK_ZONE, XPK_PROJECT
#   --name=NAME      of the workload
#   --type=TYPE      v5litepod-16, v5p-8, v6e-8, v4-32 ...
#   --image=NAME     the image that build.sh pushed
#   --storage=NAME   storage from `xpk storage attach` or `create`, mounted in the pods for the workdir
#   --restarts=N     how often all pods may restart and resume the run; default: 100
#   --spot           for clusters that provision nodes automatically
#   --dry-run        prints the commands without running them
#   -- FLAGS...      of llava_jax.main
set -euo pipefail
cluster=${XPK_CLUSTER-} zone=${XPK_ZONE-} project=${XPK_PROJECT-} name='' type='' image='' storage='' restarts=100 spot=
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
case ${1-} in
create | list | delete) verb=$1 && shift ;;
--help | -h) usage && exit ;;
*) die "expected create, list or delete; see --help" ;;
esac
flags "cluster zone project name type image storage restarts" "spot" "$@"
need cluster zone
[[ $verb == list ]] || need name
where=(--cluster="$cluster" --zone="$zone" ${project:+--project="$project"})
case $verb in
create)
    need type image storage
    [[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts is not a number"
    ((${#rest[@]})) || die "no command; add -- --config=FILE --workdir=/mnt/llava/RUN"
    # xpk sends SIGTERM to the shell that runs this, so exec replaces the shell with Python. xpk restarts after exit codes
    # from 127 on, here a signal or a lost process, and after no others.
    run xpk workload create "${where[@]}" --workload="$name" --tpu-type="$type" --docker-image="$image" \
        --storage="$storage" --max-restarts="$restarts" --termination-grace-period-seconds=600 ${spot:+--spot} \
        --command="source launch/env/tpu.sh && exec python -u -m llava_jax.main $(quoted "${rest[@]}")"
    ;;
list) run xpk workload list "${where[@]}" ;;
delete) run xpk workload delete "${where[@]}" --workload="$name" --force ;;
esac
