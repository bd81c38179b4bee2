#!/usr/bin/env bash
# The same as jobset.yaml by xpk, which writes the JobSet and asks Kueue for the slice (pip install xpk; a cluster that
# `xpk cluster create` or `adapt` made).
#
#     launch/gke/xpk.sh create --cluster=C --zone=us-west4-a --name=llava --type=v5litepod-16 --image=IMAGE --storage=workdir \
#         -- --config=configs/stage2.py --workdir=/mnt/llava/stage2
#     launch/gke/xpk.sh list --cluster=C --zone=us-west4-a
#     launch/gke/xpk.sh delete --cluster=C --zone=us-west4-a --name=llava
#
#   --cluster=NAME --zone=ZONE --project=ID   of the GKE cluster; or XPK_CLUSTER, XPK_ZONE, XPK_PROJECT
#   --name=NAME      of the workload
#   --type=TYPE      v5litepod-16, v5p-8, v6e-8, v4-32 ...
#   --image=NAME     what build.sh pushed
#   --storage=NAME   what `xpk storage attach` or `create` mounts in the pods, for the workdir
#   --restarts=N     how often all pods may be started anew, to continue; default: 100
#   --spot           where the cluster provisions nodes by itself
#   --dry-run        prints what would be done, and does nothing
#   -- FLAGS...      of llava_jax.main
set -euo pipefail
cluster=${XPK_CLUSTER-} zone=${XPK_ZONE-} project=${XPK_PROJECT-} name='' type='' image='' storage='' restarts=100 spot=
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
case ${1-} in
create | list | delete) verb=$1 && shift ;;
--help | -h) usage && exit ;;
*) die "create, list or delete? --help says more" ;;
esac
flags "cluster zone project name type image storage restarts" "spot" "$@"
need cluster zone
[[ $verb == list ]] || need name
where=(--cluster="$cluster" --zone="$zone" ${project:+--project="$project"})
case $verb in
create)
    need type image storage
    [[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts is no number"
    ((${#rest[@]})) || die "what is to run? -- --config=FILE --workdir=/mnt/llava/RUN"
    # xpk sends SIGTERM to the shell that it starts this in, so Python has to take its place. It restarts after codes from
    # 127 on, which are a signal or a lost process here, and after no others.
    run xpk workload create "${where[@]}" --workload="$name" --tpu-type="$type" --docker-image="$image" \
        --storage="$storage" --max-restarts="$restarts" --termination-grace-period-seconds=600 ${spot:+--spot} \
        --command="source launch/env/tpu.sh && exec python -u -m llava_jax.main $(quoted "${rest[@]}")"
    ;;
list) run xpk workload list "${where[@]}" ;;
delete) run xpk workload delete "${where[@]}" --workload="$name" --force ;;
esac
