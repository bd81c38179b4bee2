#!/usr/bin/env bash
# Makes a spot slice again whenever it was taken away: what nobody else does. Takes what create.sh takes and goes on until you
# stop it (Ctrl-C; the slice stays). It does not know whether the run is done, and a slice that is done costs on: status.sh.
#
#     launch/tpu_vm/keep.sh --name=llava --zone=us-west4-a --type=v5litepod-16 --spot ... -- --config=configs/stage2.py ...
#
#   --every=SECONDS  between two looks; default: 60
#   --dry-run        prints what one look would do where the slice is gone
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-} every=60
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck disable=SC2034 # create.sh reads them; here only their names are checked
flags "name zone project type runtime source ref mount every" "spot" "$@"
need name zone
[[ $every =~ ^[1-9][0-9]*$ ]] || die "--every=$every is no number of seconds"
for argument; do # as create.sh is to get them
    shift
    [[ $argument == --every=* ]] || set -- "$@" "$argument"
done
here=$(dirname "$0")
where=(--zone="$zone" ${project:+--project="$project"})
look=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')
delete=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet)
if [[ -n $dry_run ]]; then
    run "${look[@]}"
    echo "# and where that says SUSPENDED or FAILED:"
    run "${delete[@]}"
    exec bash "$here/create.sh" "$@"
fi
while true; do
    # A look that fails (no network, say) says nothing about the slice, unless it says that there is none.
    state=$("${look[@]}" 2>&1) || [[ $state != *NOT_FOUND* ]] || state=NONE
    echo "$(date +%FT%T) $name: $state"
    case $state in
    SUSPENDED | FAILED) "${delete[@]}" && bash "$here/create.sh" "$@" || true ;;
    NONE) bash "$here/create.sh" "$@" || true ;;
    esac
    sleep "$every"
done
