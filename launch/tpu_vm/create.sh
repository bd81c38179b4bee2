#!/usr/bin/env bash
# Requests a TPU slice (a queued resource). Its VMs install the program and run the training command at every start.
#
#     launch/tpu_vm/create.sh --name=llava --zone=us-west4-a --type=v5litepod-16 --spot \
#         --source=https://github.com/ME/llava_jax.git --ref=main --mount=10.0.0.2:/share \
#         -- --config=configs/stage2.py --workdir=/mnt/llava/stage2 --config.mesh.fsdp=-1
#
#   --name=NAME      name of the queued resource and the TPU; or TPU_NAME
#   --zone=ZONE      or TPU_ZONE
#   --project=ID     or TPU_PROJECT; default: gcloud's
#   --type=TYPE      v5litepod-16, v5p-8, v6e-8, v4-32 ...: gcloud compute tpus accelerator-types list --zone=ZONE
#   --runtime=NAME   VM software version; default: Google's recommendation for the type
#   --spot           cheaper, may be preempted at any time; keep.sh requests it again
#   --source=URL     a git repository that the VMs can read, or gs://BUCKET/FILE.tar.gz of one (git archive --format=tar.gz)
#   --ref=REF        branch, tag or commit of the repository; default: main
#   --mount=SOURCE   mounted at /mnt/llava on all VMs, for the workdir: HOST:/SHARE (NFS, e.g. Filestore), or
#                    gs://BUCKET (Cloud Storage FUSE; the bucket needs a hierarchical namespace, see launch/README.md)
#   --dry-run        prints the commands without running them
#   -- FLAGS...      of llava_jax.main. Without them, the VMs are set up and wait for run.sh
set -euo pipefail
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-} type='' runtime='' spot='' source='' ref=main mount=''
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"
flags "name zone project type runtime source ref mount" "spot" "$@"
need name zone type source mount
case $mount in
gs://*/* | *[[:space:]]*) die "--mount=$mount: only a whole bucket can be mounted, gs://BUCKET" ;;
gs://* | *:/*) ;;
*) die "--mount=$mount is neither HOST:/SHARE nor gs://BUCKET" ;;
esac
if [[ -z $runtime ]]; then # https://cloud.google.com/tpu/docs/runtimes
    case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    *) die "--runtime=... is required for --type=$type" ;;
    esac
fi
# ;; as the delimiter instead of a comma, which a value may contain; see `gcloud topic escaping`.
metadata="^;;^llava-source=$source;;llava-ref=$ref;;llava-mount=$mount"
((${#rest[@]} == 0)) || metadata+=";;llava-flags=$(quoted "${rest[@]}")"
[[ $(printf %s "$source$ref$mount${rest[*]-}") != *';;'* ]] || die "a value cannot contain ';;'"
run gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" ${project:+--project="$project"} \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot} --metadata="$metadata" \
    --metadata-from-file=startup-script="$(dirname "$0")/worker.sh" --scopes=https://www.googleapis.com/auth/cloud-platform
