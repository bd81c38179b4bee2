#!/usr/bin/env bash
# Builds the image and pushes it to a registry that the cluster reads.
#
#     launch/gke/build.sh --image=us-docker.pkg.dev/PROJECT/REPOSITORY/llava-jax:v1
#
#   --image=NAME     with registry and tag
#   --extra=EXTRA    tpu (default) or gpu
#   --dry-run        prints what would be done, and does nothing
set -euo pipefail
image='' extra=tpu
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "image extra" "" "$@"
need image
[[ $extra == tpu || $extra == gpu ]] || die "--extra=$extra is neither tpu nor gpu"
[[ -f launch/gke/Dockerfile ]] || die "to be called from the root of the repository: that folder is what is built"
# The nodes are x86, whatever this machine is.
run docker build --platform=linux/amd64 -f launch/gke/Dockerfile --build-arg "EXTRA=$extra" -t "$image" .
run docker push "$image"
