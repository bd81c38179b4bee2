#!/usr/bin/env bash
# Runs one process with eight simulated CPU devices, to try a mesh.
#
#     launch/local/eight_devices.sh --config=configs/quickstart.py --workdir=/tmp/mesh \
#         --config.mesh.data=2 --config.mesh.fsdp=2 --config.mesh.tensor=2
#     launch/local/eight_devices.sh --dry-run --config=FILE ...     prints the commands without running them
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
case ${1-} in
--help | -h) usage && exit ;;
--dry-run) dry_run=1 && shift ;;
esac
(($#)) || die "no command; usage: $0 --config=FILE ...; see --help"
run env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 python -m llava_jax.main --processes=1 "$@"
