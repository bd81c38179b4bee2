"""launch/local/run_multiprocess.sh as a user calls it: two processes train as one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fixtures import child_process

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_train_one_run(tmp_path):
    settings = child_process.TRAINING | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [
            "bash", "launch/local/run_multiprocess.sh", "2", "--config=tests/train/resume_config.py",
            f"--workdir={tmp_path}", "--config.run=('stage1',)", "--config.stages.stage1.steps=2",
            "--config.stages.stage1.eval.answers=1", "--config.log_every=1",
        ],
        cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert "process 1 of 2 waits for the others" in done.stderr
