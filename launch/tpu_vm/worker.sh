#!/usr/bin/env bash
# Runs on each VM of a slice, as root. It is the startup script of the VMs: without arguments it does setup, and run unless the
# run was stopped. By hand: worker.sh setup|run FLAGS...|stop|status.
#
# Settings: LLAVA_SOURCE, LLAVA_REF and LLAVA_MOUNT as in create.sh, and LLAVA_FLAGS, the shell-quoted flags of llava_jax.main.
# Read from the environment, else from the last call, else from the instance metadata.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive HOME=${HOME:-/root}
home=/opt/llava

setting() { # setting NAME: prints its value, or nothing
    local variable
    variable=LLAVA_$(tr '[:lower:]' '[:upper:]' <<<"$1")
    mkdir -p "$home/settings"
    if [[ -n ${!variable-} ]]; then
        echo "${!variable}" >"$home/settings/$1"
    elif [[ ! -e $home/settings/$1 ]]; then
        curl -fsS -H 'Metadata-Flavor: Google' -o "$home/settings/$1" \
            "http://metadata.google.internal/computeMetadata/v1/instance/attributes/llava-$1" 2>/dev/null || return 0
    fi
    cat "$home/settings/$1"
}

prepare() { # repeats what a VM restart undoes
    # JAX recommends it: the TPU runtime of v5e and newer starts and stops much faster.
    echo always >/sys/kernel/mm/transparent_hugepage/enabled
    ! mountpoint -q /mnt/llava || return 0
    local mount_source
    mount_source=$(setting mount)
    mkdir -p /mnt/llava
    if [[ $mount_source == gs://* ]]; then
        if ! command -v gcsfuse >/dev/null; then # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
            local key=/usr/share/keyrings/cloud.google.asc
            curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg -o "$key"
            echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" \
                >/etc/apt/sources.list.d/gcsfuse.list
            apt-get update && apt-get install -y gcsfuse
        fi
        # No metadata cache: what one VM writes must be visible to the others at once. No --rename-dir-limit: in a bucket
        # without a hierarchical namespace a checkpoint could be renamed partially; without the option, saving fails there.
        gcsfuse -o allow_other --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
            "${mount_source#gs://}" /mnt/llava
    else
        command -v mount.nfs >/dev/null || { apt-get update && apt-get install -y nfs-common; }
        mount -t nfs -o hard "$mount_source" /mnt/llava
    fi
}

setup() {
    local source ref
    source=$(setting source) ref=$(setting ref)
    [[ -n $source && -n $(setting mount) ]] || { echo "error: set LLAVA_SOURCE and LLAVA_MOUNT" >&2 && exit 2; }
    rm -rf "$home/installed" "$home/source"
    [[ $0 -ef $home/worker.sh ]] || cp "$0" "$home/worker.sh"
    prepare
    mkdir "$home/source"
    if [[ $source == gs://* ]]; then
        gcloud storage cat "$source" | tar -xz -C "$home/source"
    else
        git init -q "$home/source"
        git -C "$home/source" fetch -q --depth=1 "$source" "${ref:-main}"
        git -C "$home/source" checkout -q FETCH_HEAD
    fi
    # The VMs have Python 3.10; uv installs a newer one.
    command -v uv >/dev/null || curl -fsSL https://astral.sh/uv/install.sh | env UV_INSTALL_DIR=/usr/local/bin sh
    [[ -d $home/venv ]] || uv venv -q --python 3.12 "$home/venv"
    uv pip install -q --python "$home/venv/bin/python" -e "$home/source[tpu]"
    touch "$home/installed"
}

is_running() { [[ $(systemctl show -p ActiveState --value llava) =~ ^(active|activating|deactivating)$ ]]; }

start() {
    local flags
    ! is_running || { echo "training is already running" && return; }
    if (($#)); then export LLAVA_FLAGS && LLAVA_FLAGS=$(printf '%q ' "$@"); fi
    flags=$(setting flags)
    [[ -n $flags ]] || { echo "no training command yet; start one with launch/tpu_vm/run.sh" && return; }
    rm -f "$home/stopped"
    # In a file, because systemd expands $ on its command line.
    echo "source launch/env/tpu.sh && exec python -u -m llava_jax.main $flags" >"$home/start.sh"
    systemctl reset-failed llava 2>/dev/null || true
    # Restarts if killed, or aborted by JAX because another VM is lost (134), and waits for the others. Its own errors (exit
    # codes 1, 2, 3) would only repeat. After SIGTERM, also at VM shutdown, it has ten minutes to save.
    systemd-run --unit=llava --working-directory="$home/source" --setenv=PATH="$home/venv/bin:$PATH" --setenv=HOME=/root \
        --property=Restart=on-abnormal --property=RestartSec=10 --property=SuccessExitStatus=143 \
        --property=TimeoutStopSec=600 --property=LimitNOFILE=1048576 \
        --property=StandardOutput=append:/var/log/llava.log --property=StandardError=inherit \
        bash "$home/start.sh"
}

case ${1-boot} in
boot)
    # Installs only once: a branch may have changed since, and all VMs must run the same code.
    if [[ -e $home/installed ]]; then prepare; else setup; fi
    [[ -e $home/stopped ]] || start
    ;;
setup) setup ;;
run)
    shift
    start "$@"
    ;;
stop)
    touch "$home/stopped"
    ! is_running || systemctl stop llava
    ;;
status)
    systemctl show llava -p ActiveState -p Result -p ExecMainStatus -p NRestarts
    tail -n 1 /var/log/llava.log 2>/dev/null || true
    ;;
*) echo "usage: $0 [setup|run FLAGS...|stop|status]" >&2 && exit 2 ;;
esac
