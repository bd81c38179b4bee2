"""Folders of ScienceQA's, made for tests."""

import json
from pathlib import Path

from llava_jax.evaluation.scienceqa.score import read_problems

PLAIN = {
    "question": "Which?", "choices": ["one", "two", "three"], "answer": 0, "hint": "", "image": None, "lecture": "",
    "solution": "", "split": "test", "subject": "natural science", "topic": "physics", "grade": "grade3",
}  # fmt: skip


def write_folder(folder: Path, problems: dict[str, dict]) -> Path:
    """problems: what differs from PLAIN, by id; so all are of the split test that do not say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {pid: PLAIN | changes for pid, changes in problems.items()}
    (folder / "problems.json").write_text(json.dumps(whole))
    splits = {name: [pid for pid in whole if whole[pid]["split"] == name] for name in ("train", "val", "test")}
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    return folder


def planted(folder: Path, problems: dict[str, dict]):
    return read_problems(write_folder(folder, problems), "test")
