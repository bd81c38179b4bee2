#!/usr/bin/env bash
# N processes on this machine train as one run, as N hosts would; on CPU, one device each:
#
#     launch/local/run_multiprocess.sh N --config=FILE [--workdir=DIR] [--config.NAME=VALUE ...]
#
# Ctrl-C or SIGTERM stops all of them, after saving. Ends with the exit code of the lowest number that failed.
set -uo pipefail
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || { echo "usage: $0 N --config=FILE ..." >&2; exit 2; }
count=$1; shift
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-1}
port=$(python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])') || exit
processes=()
for ((i = 0; i < count; i++)); do
    # In a session of its own: Ctrl-C is for this script, which asks them to stop.
    setsid python -m llava_jax.main "$@" --coordinator="localhost:$port" --processes="$count" --process="$i" &
    processes+=($!)
done
trap 'kill -TERM "${processes[@]}" 2>/dev/null' INT TERM
failed=0
for process in "${processes[@]}"; do
    wait "$process"; code=$?
    # A signal ends `wait`, not the process.
    while kill -0 "$process" 2>/dev/null; do wait "$process"; code=$?; done
    [ "$failed" != 0 ] || failed=$code
done
exit "$failed"
