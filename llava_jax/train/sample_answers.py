"""Writes the sample answers of an evaluation, with facts about the run from the workdir's files."""

import re
from collections.abc import Mapping
from pathlib import Path

from llava_jax.data.example import Example
from llava_jax.data.inspection.answers_page import RunSummary, read_sample_answers, write_answers
from llava_jax.train.workdir import read_json

FOLDER = re.compile(r"(?P<stage>.+)-(?P<step>\d{6,})")


def save_answers(
    folder: Path, examples: list[Example], answers: list[str], facts: Mapping[str, str] | None = None
) -> None:
    """Writes answers.json, answers.html and the images to `folder`. If that is samples/<stage>-<step> of a workdir, the
    page shows the model and the accuracy table from the workdir's files, and the answers before the stage from
    samples/<stage>-000000, as far as they exist. Raises as `write_answers` does."""
    match, before, run = FOLDER.fullmatch(folder.name), {}, RunSummary()
    if match and folder.parent.name == "samples":
        step = int(match["step"])
        run = _summary(folder.parent.parent, match["stage"], step)
        before = read_sample_answers(folder.with_name(f"{match['stage']}-{0:06d}") / "answers.json") if step else {}
    write_answers(folder, examples, answers, run, before, facts)


def _summary(workdir: Path, stage: str, step: int) -> RunSummary:
    config, accuracy = read_json(workdir / "config.json"), read_json(workdir / f"accuracy-{stage}.json")
    facts = {"stage": stage, "step": f"{step:,}"}
    if not config:
        return RunSummary(stage, step, facts, accuracy)
    model, settings = config["model"], config["stages"][stage]
    data = settings["data"]
    source = f"scenes, {data['scenes']}" if data["source"] == "scenes" else Path(data["path"]).name
    source = f"mixture of {len(data['mixture'])}" if data["mixture"] else source
    facts["step"] += f" of {settings['steps']:,}" if settings["steps"] else ""
    facts |= {"vision tower": model["vision"], "projector": model["projector"], "language model": model["llm"]}
    facts |= {"data": source, "template": data["template"]}
    return RunSummary(stage, step, facts, accuracy, settings["eval"]["questions"])
