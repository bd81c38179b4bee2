"""The manifests of launch/: Kubernetes, SkyPilot, Slurm, Docker."""

import json
import math
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
JOBSET = yaml.safe_load((ROOT / "launch/gke/jobset.yaml").read_text())
SBATCH = {  # the options used, and a pattern of their values: https://slurm.schedmd.com/sbatch.html
    "job-name": r"[\w-]+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "exclusive": r"(user|mcs|topo)?",
    "time": r"(\d+-)?\d+(:\d\d){0,2}",
    "output": r"\S+",
    "open-mode": r"append|truncate",
    "requeue": "",
    "signal": r"([RB]{1,2}:)?(\d+|[A-Z]+\d?)(@\d+)?",
}


def validate(schema: str, value) -> None:
    jsonschema.validate(value, json.loads((Path(__file__).parent / schema).read_text()))


def test_jobset_matches_the_schema():
    validate("jobset.schema.json", JOBSET)
    (replicated,) = JOBSET["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    vms = chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == vms, "one pod per VM of the slice"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert set(rule["onExitCodes"]["values"]) == {1, 2, 3}, "the program's errors; 134 and 143 restart"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    (workdir,) = [argument.partition("=")[2] for argument in container["args"] if argument.startswith("--workdir=")]
    assert any(workdir.startswith(f"{path}/") for path in mounted.values()), "otherwise it is lost with the pod"


@pytest.mark.parametrize("broken", ["kind", "misspelt", "restartPolicy", "tpu"])
def test_broken_jobset_fails_the_schema(broken):
    value = json.loads(json.dumps(JOBSET))
    pod = value["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    if broken == "kind":
        del value["kind"]
    elif broken == "misspelt":
        value["spec"]["failurePolicy"]["maxRestart"] = 3
    elif broken == "restartPolicy":
        pod["restartPolicy"] = "OnFailure"
    else:
        pod["containers"][0]["resources"]["limits"]["google.com/tpu"] = "4"
    with pytest.raises(jsonschema.ValidationError):
        validate("jobset.schema.json", value)


@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_skypilot_task_matches_the_schema_and_runs(device, tmp_path):
    task = yaml.safe_load((ROOT / f"launch/skypilot/{device}.yaml").read_text())
    validate("skypilot.schema.json", task)
    used = set(re.findall(r"\$\{?([A-Z]+)\b", json.dumps(task["file_mounts"]) + task["run"])) - {"SKYPILOT"}
    assert used == set(task["envs"]), "the variables that jobs.sh sets"

    # The command of `run`, on one machine and on two.
    (tmp_path / "llava-venv/bin").mkdir(parents=True)
    python = tmp_path / "llava-venv/bin/python"
    python.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    flags = ["--config=a b.py", "--config.run=('x', 'y')"]
    base = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FLAGS": shlex.join(flags)}
    single = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NODE_RANK": "0"}
    second = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    cluster = ["--coordinator=10.0.0.1:12345", "--processes=2", "--process=1"]
    for environment, expected in ((single, ["--processes=1"]), (second, cluster)):
        done = subprocess.run(
            ["bash", "-c", task["run"]], cwd=ROOT, env=base | environment, capture_output=True, text=True, check=True
        )
        expected = expected if device == "gpu" else []  # on TPU JAX finds the other processes
        assert done.stdout.splitlines() == ["-u", "-m", "llava_jax.main", *expected, *flags]


def test_sbatch_options_are_valid():
    text = (ROOT / "launch/slurm/train.sbatch").read_text()
    header, _, body = text.partition("\nset -")  # sbatch reads options up to the first command
    assert "#SBATCH" not in body and text.startswith("#!/")
    assert all(line.startswith("#") or not line for line in header.splitlines())
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", header, re.M))
    assert len(options) == header.count("\n#SBATCH") and options.keys() <= SBATCH.keys()
    for name, value in options.items():
        assert re.fullmatch(SBATCH[name], value), f"--{name}={value}"
    assert options["ntasks-per-node"] == options["gpus-per-node"], "one task per GPU, as JAX assigns them"
    assert options["signal"].startswith("TERM@"), "sent to the tasks, not to the shell (B:)"


def test_dockerfile_copies_existing_files():
    text = (ROOT / "launch/gke/Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert 'ENTRYPOINT ["tini", "--"]' in text
