#!/usr/bin/env bash
# Trains one run in N processes on this machine, like N hosts; on CPU with one device each.
#
#     launch/local/run_multiprocess.sh N --config=FILE [--workdir=DIR] [--config.NAME=VALUE ...]
#     launch/local/run_multiprocess.sh --dry-run N --config=FILE ...     prints the commands without running them
#
# JAX_NUM_CPU_DEVICES=4 gives each process four devices. Ctrl-C, SIGHUP or SIGTERM saves a checkpoint and stops all. The
# exit code is that of the first process, by number, that failed.
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
case ${1-} in
--help | -h) usage && exit ;;
--dry-run) dry_run=1 && shift ;;
esac
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || die "the number of processes is missing; usage: $0 N --config=FILE ...; see --help"
count=$1; shift
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-1}
if [[ -n $dry_run ]]; then
    for ((i = 0; i < count; i++)); do
        quoted JAX_PLATFORMS="$JAX_PLATFORMS" JAX_NUM_CPU_DEVICES="$JAX_NUM_CPU_DEVICES" python -m llava_jax.main "$@" \
            --coordinator=localhost:12345 --processes="$count" --process="$i"
        echo ' &'
    done
    exit
fi
port=$(python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])') || exit
processes=()
for ((i = 0; i < count; i++)); do
    # In its own session: Ctrl-C reaches only this script, which forwards it.
    setsid python -m llava_jax.main "$@" --coordinator="localhost:$port" --processes="$count" --process="$i" &
    processes+=($!)
done
trap 'kill -TERM "${processes[@]}" 2>/dev/null' INT TERM HUP
failed=0
for process in "${processes[@]}"; do
    wait "$process"; code=$?
    # A signal ends `wait`, not the process.
    while kill -0 "$process" 2>/dev/null; do wait "$process"; code=$?; done
    [ "$failed" != 0 ] || failed=$code
done
exit "$failed"
