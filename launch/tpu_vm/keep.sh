#!/usr/bin/env bash
# Recreates a spot slice after each preemption, which Google does not do. Takes what create.sh takes, and runs until you stop
# it (Ctrl-C; the slice stays). It does not notice when the run is done, and an idle slice still costs money: use status.sh.
#
#     launch/tpu_vm/keep.sh --name=llava --zone=us-west4-a --type=v5litepod-16 --spot ... -- --config=configs/stage2.py ...
#
#   --every=SECONDS  between two checks; default: 60
#   --dry-run        prints what one check would run if the slice is gone
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-} every=60
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck disable=SC2034 # create.sh reads them; here only their names are checked
flags "name zone project type runtime source ref mount every" "spot" "$@"
need name zone
[[ $every =~ ^[1-9][0-9]*$ ]] || die "--every=$every is not a number of seconds"
for argument; do # for create.sh, without --every
    shift
    [[ $argument == --every=* ]] || set -- "$@" "$argument"
done
here=$(dirname "$0")
where=(--zone="$zone" ${project:+--project="$project"})
check=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')
delete=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet)
if [[ -n $dry_run ]]; then
    run "${check[@]}"
    echo "# and if that prints SUSPENDED or FAILED:"
    run "${delete[@]}"
    exec bash "$here/create.sh" "$@"
fi
while true; do
    # A failed check (e.g. no network) does not count, unless the error is NOT_FOUND.
    state=$("${check[@]}" 2>&1) || [[ $state != *NOT_FOUND* ]] || state=NONE
    echo "$(date +%FT%T) $name: $state"
    case $state in
    SUSPENDED | FAILED) "${delete[@]}" && bash "$here/create.sh" "$@" || true ;;
    NONE) bash "$here/create.sh" "$@" || true ;;
    esac
    sleep "$every"
done
