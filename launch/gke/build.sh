#!/usr/bin/env bash
# Builds the image and pushes it to a registry of the cluster.
#
#     launch/gke/build.sh --image=us-docker.pkg.dev/PROJECT/REPOSITORY/llava-jax:v1
#
#   --image=NAME     with registry and tag
#   --extra=EXTRA    tpu (default) or gpu
#   --dry-run        prints the commands without running them
set -euo pipefail
image='' extra=tpu
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "image extra" "" "$@"
need image
[[ $extra == tpu || $extra == gpu ]] || die "--extra=$extra is neither tpu nor gpu"
[[ -f launch/gke/Dockerfile ]] || die "call it from the root of the repository, which is the build context"
# The nodes are x86, this machine may not be.
run docker build --platform=linux/amd64 -f launch/gke/Dockerfile --build-arg "EXTRA=$extra" -t "$image" .
run docker push "$image"
