#!/usr/bin/env bash
# What happens on each VM of a slice, as root. It is the startup script of the VMs, so without arguments it does what is to be
# done at every start: setup, and run unless the run was stopped. By hand: worker.sh setup|run FLAGS...|stop|status.
#
# Settings: LLAVA_SOURCE, LLAVA_REF, LLAVA_MOUNT as create.sh explains them, and LLAVA_FLAGS, those of llava_jax.main as a
# shell would read them. From the environment; else as they were the last time; else from the metadata of the instance.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive HOME=${HOME:-/root}
home=/opt/llava

setting() { # setting source -> its value, or nothing
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

prepare() { # what a restart of the VM undoes
    # JAX asks for it: the TPU runtime of v5e and newer starts and ends much sooner.
    echo always >/sys/kernel/mm/transparent_hugepage/enabled
    ! mountpoint -q /mnt/llava || return 0
    local place
    place=$(setting mount)
    mkdir -p /mnt/llava
    if [[ $place == gs://* ]]; then
        if ! command -v gcsfuse >/dev/null; then # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
            local key=/usr/share/keyrings/cloud.google.asc
            curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg -o "$key"
            echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" \
                >/etc/apt/sources.list.d/gcsfuse.list
            apt-get update && apt-get install -y gcsfuse
        fi
        # What one VM writes, the others must see at once, so nothing is cached about files. No --rename-dir-limit: in a
        # bucket without a hierarchical namespace a checkpoint could get its name half; this way saving fails there.
        gcsfuse -o allow_other --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
            "${place#gs://}" /mnt/llava
    else
        command -v mount.nfs >/dev/null || { apt-get update && apt-get install -y nfs-common; }
        mount -t nfs -o hard "$place" /mnt/llava
    fi
}

setup() {
    local source ref
    source=$(setting source) ref=$(setting ref)
    [[ -n $source && -n $(setting mount) ]] || { echo "error: LLAVA_SOURCE, LLAVA_MOUNT: what to install?" >&2 && exit 2; }
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
    # The VMs' own Python is 3.10; uv brings a newer one.
    command -v uv >/dev/null || curl -fsSL https://astral.sh/uv/install.sh | env UV_INSTALL_DIR=/usr/local/bin sh
    [[ -d $home/venv ]] || uv venv -q --python 3.12 "$home/venv"
    uv pip install -q --python "$home/venv/bin/python" -e "$home/source[tpu]"
    touch "$home/installed"
}

is_under_way() { [[ $(systemctl show -p ActiveState --value llava) =~ ^(active|activating|deactivating)$ ]]; }

start() {
    local flags
    ! is_under_way || { echo "already under way" && return; }
    if (($#)); then export LLAVA_FLAGS && LLAVA_FLAGS=$(printf '%q ' "$@"); fi
    flags=$(setting flags)
    [[ -n $flags ]] || { echo "no training command yet: launch/tpu_vm/run.sh gives one" && return; }
    rm -f "$home/stopped"
    # In a file, because systemd would read a $ on its command line as its own.
    echo "source launch/env/tpu.sh && exec python -u -m llava_jax.main $flags" >"$home/start.sh"
    systemctl reset-failed llava 2>/dev/null || true
    # Killed, or aborted by JAX because another VM is gone (134): started anew, to wait for the others. An error of its own
    # (1, 2, 3) would only come again. SIGTERM, also when the VM is shut down, gets ten minutes to save.
    systemd-run --unit=llava --working-directory="$home/source" --setenv=PATH="$home/venv/bin:$PATH" --setenv=HOME=/root \
        --property=Restart=on-abnormal --property=RestartSec=10 --property=SuccessExitStatus=143 \
        --property=TimeoutStopSec=600 --property=LimitNOFILE=1048576 \
        --property=StandardOutput=append:/var/log/llava.log --property=StandardError=inherit \
        bash "$home/start.sh"
}

case ${1-boot} in
boot)
    # Installed once: a branch may have moved on since, and all VMs must have the same.
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
    ! is_under_way || systemctl stop llava
    ;;
status)
    systemctl show llava -p ActiveState -p Result -p ExecMainStatus -p NRestarts
    tail -n 1 /var/log/llava.log 2>/dev/null || true
    ;;
*) echo "usage: $0 [setup|run FLAGS...|stop|status]" >&2 && exit 2 ;;
esac
