"""python -m llava_jax eval scienceqa predict: its file, resuming, and rejected files and flags."""

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from llava_jax.__main__ import main
from llava_jax.api import load as loading
from llava_jax.api.model import LlavaModel
from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER
from llava_jax.errors import ConfigError
from llava_jax.evaluation import runner
from llava_jax.evaluation.answers_file import open_answers_file
from llava_jax.evaluation.scienceqa.files import read_answers
from tests.fixtures.file_damage import files_of_at_most
from tests.fixtures.hf_models import hf_llama
from tests.fixtures.scienceqa import CONFIG, MISSING, SHOWN, write_folder, write_model, write_problems

PREDICT = ["eval", "scienceqa", "predict"]
ROOT = Path(__file__).parents[2]
TIMEOUT = 300  # seconds


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with a model and ScienceQA problems."""
    workspace = tmp_path_factory.mktemp("workspace")
    write_model(workspace / "tiny")
    write_problems(workspace / "sqa")
    return workspace


@pytest.fixture(scope="module")
def call(workspace):
    """Runs the verb in this process; each model is loaded once."""
    loaded, load = {}, loading.load

    def load_once(path, **options):
        key = str(path), *sorted((k, str(v)) for k, v in options.items())
        if key not in loaded:
            loaded[key] = load(path, **options)
        return loaded[key]

    def run(out: Path, *flags: str, model: str = "tiny") -> int:
        return main([*PREDICT, str(workspace / model), *arguments(workspace, out), *flags])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", load_once)
        yield run


def arguments(workspace: Path, out: Path) -> list[str]:
    made = ["--problems", str(workspace / "sqa"), "--out", str(out), "--dtype", "float32", "--max-new-tokens", "12"]
    return [*made, "--missing-images", "text"]


@pytest.fixture(scope="module")
def whole(call, workspace) -> bytes:
    """The answers file of an uninterrupted run, in batches of 8."""
    assert call(workspace / "whole.jsonl", "--batch", "8") == 0
    return (workspace / "whole.jsonl").read_bytes()


def test_answers_file_has_the_original_format(whole, workspace):
    records = [json.loads(line) for line in whole.decode().splitlines()]
    assert {tuple(record) for record in records} == {
        ("question_id", "prompt", "text", "answer_id", "model_id", "metadata")
    }
    assert sorted(int(record["question_id"]) for record in records) == list(range(13))
    assert [record["question_id"] for record in records] != [str(i) for i in range(13)], "sorted by length"
    for record in records:
        assert record["prompt"].startswith("<image>\nWhich") == (record["question_id"] in SHOWN)
        assert ("<image>" in record["prompt"]) == (record["question_id"] in SHOWN)
        assert record["text"] == record["text"].strip() and record["model_id"] == "tiny" and record["metadata"] == {}
    assert len({record["text"] for record in records}) > 6, "otherwise the tests below prove nothing"
    assert len({record["answer_id"] for record in records}) == 13
    assert all(re.fullmatch("[0-9a-f]{22}", record["answer_id"]) for record in records)
    answers = read_answers(workspace / "whole.jsonl")
    assert len(answers.texts) == len(answers.prompts) == 13


def test_batch_size_does_not_change_the_answers(whole, call, workspace):
    for batch in (1, 3):
        assert call(workspace / f"{batch}.jsonl", "--batch", str(batch)) == 0
        assert (workspace / f"{batch}.jsonl").read_bytes() == whole


def test_resume_is_byte_equal_after_a_cut_at_any_byte(whole, call, workspace, tmp_path, capsys):
    out, rng = tmp_path / "a.jsonl", random.Random(5)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in [
        0,
        1,
        ends[0] - 1,
        ends[0],
        ends[4] + 1,
        len(whole) - 1,
        *(rng.randrange(len(whole)) for _ in range(5)),
    ]:
        out.write_bytes(whole[:cut])
        (tmp_path / "a.jsonl.settings.json").write_bytes((workspace / "whole.jsonl.settings.json").read_bytes())
        capsys.readouterr()
        assert call(out, "--batch", "8") == 0
        assert out.read_bytes() == whole, cut
        there = sum(end <= cut for end in ends)
        printed = capsys.readouterr().out
        assert f"13 answers, {13 - there} of them new" in printed
        assert ("already answered" in printed) == (there > 0)
    assert call(out, "--batch", "5") == 0 and out.read_bytes() == whole
    assert "13 answers, 0 of them new" in capsys.readouterr().out


SLOWLY = """
import sys, time
from llava_jax.evaluation.answers_file import AnswersFile
from llava_jax.__main__ import main
write, limit = AnswersFile.write, int(sys.argv[1])
AnswersFile.write = lambda self, new: write(self, new) or (time.sleep(999) if self.count >= limit else None)
sys.exit(main(sys.argv[2:]))
"""


def test_resume_is_byte_equal_after_sigkill(whole, call, workspace, tmp_path):
    """Killed twice, each time after a partial line."""
    out = tmp_path / "a.jsonl"
    for lines in (4, 8):
        command = [sys.executable, "-c", SLOWLY, str(lines), *PREDICT, str(workspace / "tiny")]
        command += [*arguments(workspace, out), "--batch", "4"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        while not out.exists() or out.read_bytes().count(b"\n") < lines:
            assert process.poll() is None and time.monotonic() - began < TIMEOUT
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert out.read_bytes() == b"".join(whole.splitlines(True)[:lines]), (
            "one device gives the same answers as eight"
        )
        with out.open("ab") as file:
            file.write(whole.splitlines(True)[lines][:40])
    assert call(out, "--batch", "4") == 0 and out.read_bytes() == whole


@pytest.fixture
def two_answers(call, tmp_path) -> Path:
    """An answers file with two answers."""
    assert call(tmp_path / "a.jsonl", "--limit", "2") == 0
    return tmp_path / "a.jsonl"


REFUSED = {
    ("--limit", "3"): "limit 2, not 3",
    ("--temperature", "0.2"): "temperature 0.0, not 0.2",
    ("--seed", "1"): "seed 0, not 1",
    ("--max-new-tokens", "13"): "max_new_tokens 12, not 13",
    ("--dtype", "bfloat16"): "dtype 'float32', not 'bfloat16'",
    ("--prompt-format", "CQM-A"): "prompt_format 'QCM-LEA', not 'CQM-A'",
    ("--image-place", "back"): "image_place 'front', not 'back'",
    ("--missing-images", "skip"): "missing_images 'text', not 'skip'",
    ("--single-prediction",): "single_prediction False, not True",
    ("--without-images",): "without_images False, not True",
    ("--two-steps",): "two_steps False, not True",
    ("--template", "llava_v1"): "template 'vicuna_v1', not 'llava_v1'",
    ("--aspect", "pad"): "aspect 'crop', not 'pad'",
}


def assert_refused(capsys, code: int, message: str) -> None:
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_file_with_other_settings_is_not_continued(two_answers, call, capsys):
    before = two_answers.read_bytes()
    for flags, message in REFUSED.items():
        message = f"a.jsonl: its 2 answers were made with {message}. Choose another file"
        assert_refused(capsys, call(two_answers, *(() if "--limit" in flags else ("--limit", "2")), *flags), message)
    assert two_answers.read_bytes() == before
    assert call(two_answers, "--limit", "2", "--batch", "1") == 0 and two_answers.read_bytes() == before


def test_file_with_other_weights_or_problems_is_not_continued(two_answers, call, workspace, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runner, "weights_fingerprint", lambda params: "others")
        assert_refused(capsys, call(two_answers, "--limit", "2"), "its 2 answers were made with weights '")
    problems = workspace / "sqa" / "problems.json"
    before = problems.read_text()
    try:
        problems.write_text(before.replace("Which is 0?", "Which is zero?"))
        assert_refused(capsys, call(two_answers, "--limit", "2"), "its 2 answers were made with prompts '")
    finally:
        problems.write_text(before)
    (workspace / "other").symlink_to(workspace / "tiny")
    assert call(two_answers, "--limit", "2", model="other") == 0, "the same weights"


def test_modified_answers_file_is_rejected(two_answers, call, capsys):
    settings, before = two_answers.with_name("a.jsonl.settings.json"), two_answers.read_bytes()
    first, second = before.splitlines(True)
    for text, message in (
        (second + first, "line 1 is not the answer to 1"),
        (first + b"torn\n", "line 2 is not the answer to 0"),
        (before + first, "line 3 is not the answer to any question"),
    ):
        two_answers.write_bytes(text)
        assert_refused(capsys, call(two_answers, "--limit", "2"), message)
        assert two_answers.read_bytes() == text
    two_answers.write_bytes(before)
    for broken in ("{", None):
        settings.unlink() if broken is None else settings.write_text(broken)
        message = "has 2 lines, but no valid a.jsonl.settings.json beside it"
        assert_refused(capsys, call(two_answers, "--limit", "2"), message)
    two_answers.write_bytes(first[:30])  # contains no complete line
    assert call(two_answers, "--limit", "2") == 0 and two_answers.read_bytes() == before


def test_answers_file_is_locked_by_one_process(two_answers, call, capsys):
    with two_answers.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_refused(capsys, call(two_answers, "--limit", "2"), "another process is writing it")


def test_resume_is_byte_equal_after_a_full_disk(whole, call, tmp_path, capsys):
    out = tmp_path / "a.jsonl"
    with files_of_at_most(1200):
        assert_refused(capsys, call(out, "--batch", "3"), "a.jsonl: cannot be written (File too large)")
    assert 0 < out.stat().st_size <= 1200
    assert call(out, "--batch", "3") == 0 and out.read_bytes() == whole


def test_ctrl_c_says_how_to_continue(whole, call, tmp_path, capsys, monkeypatch):
    answers, calls = LlavaModel.answers, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answers(*args)

    with monkeypatch.context() as patch:
        patch.setattr(LlavaModel, "answers", stopped)
        assert call(tmp_path / "a.jsonl", "--batch", "4") == 130
    assert "stopped after 4 of 13; run the same command again to resume" in capsys.readouterr().out
    assert call(tmp_path / "a.jsonl", "--batch", "4") == 0 and (tmp_path / "a.jsonl").read_bytes() == whole


def test_missing_images_are_reported(call, workspace, tmp_path, capsys):
    code = call(tmp_path / "a.jsonl", "--missing-images", "error")
    assert_refused(capsys, code, "images of 1 problems are missing (of 3)")
    assert not (tmp_path / "a.jsonl").exists()
    for policy, message in (("text", "13 problems, 4"), ("skip", "12 problems, 4")):
        out = tmp_path / f"{policy}.jsonl"
        assert call(out, "--missing-images", policy) == 0
        printed = capsys.readouterr().out
        assert f"{message} with their image; the images of 1 are missing, these are" in printed
        assert "first: 3" in printed
        assert (MISSING[0] in read_answers(out).texts) == (policy == "text")


def test_language_model_alone_needs_without_images(call, workspace, tmp_path, capsys):
    hf_llama(CONFIG.llm).save_pretrained(workspace / "words")
    for file in TINY_TOKENIZER.iterdir():
        (workspace / "words" / file.name).write_bytes(file.read_bytes())
    out, _ = tmp_path / "a.jsonl", capsys.readouterr()
    assert_refused(
        capsys,
        call(out, "--template=vicuna_v1", model="words"),
        "words is a language model alone; pass --without-images",
    )
    assert call(out, "--without-images", "--limit", "3", model="words") == 0
    assert "3 problems, 0 with their image" in capsys.readouterr().out
    assert not any("<image>" in prompt for prompt in read_answers(out).prompts.values())


def test_two_steps_with_the_v0_template(call, tmp_path):
    """The template llava_v0 with the image after the text."""
    out = tmp_path / "a.jsonl"
    flags = ["--two-steps", "--image-place", "back", "--template", "llava_v0", "--limit", "2"]
    assert call(out, *flags) == 0
    for record in map(json.loads, out.read_text().splitlines()):
        assert "\n The answer is " in record["text"] and not record["prompt"].startswith("<image>")
        assert record["prompt"].endswith("\n<image>") == (record["question_id"] == "1")


def test_errors_are_one_line_and_exit_2(call, workspace, tmp_path, tmp_path_factory, capsys, monkeypatch):
    out, there = tmp_path / "a.jsonl", tmp_path_factory.mktemp("there")
    (there / "file").touch()
    os.mkfifo(there / "pipe")  # like /dev/null: must not be removed
    for flags, message in (
        (["--batch", "0"], "--batch 0 at least 1"),
        (["--limit", "-1"], "--limit -1 must be at least 0"),
        (["--temperature", "-1"], "temperature=-1.0 is out of range"),
        (["--max-new-tokens", "0"], "max_new_tokens=0 is out of range"),
        (["--template", "v1"], "no conversation template is called 'v1'"),
        (["--prompt-format", "QCM-AL"], "Write QCM-AL_original"),
        (["--split", "dev"], "there is no split 'dev'"),
        (["--image-folder", str(tmp_path / "gone")], "image folder of"),
        (["--out", str(there / "file" / "a")], "cannot be written"),
        (["--out", str(there / "pipe")], "pipe: cannot be written (not a file)"),
    ):
        assert_refused(capsys, call(out, *flags), message)
    assert (there / "pipe").is_fifo()
    assert_refused(capsys, call(out, model="gone"), "gone")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert_refused(capsys, call(out), "predict runs in one process, on all its devices; this is one of 2")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_lone_surrogate_in_a_problem_is_named(call, tmp_path, capsys):
    write_folder(tmp_path / "sqa", {"1": {}, "2": {"question": "Which \ud83d?"}})
    message = "problem 2: the text is not valid Unicode"
    assert_refused(capsys, call(tmp_path / "a.jsonl", "--problems", str(tmp_path / "sqa")), message)


def test_empty_answers_file_is_removed_and_a_used_one_locked(tmp_path):
    with open_answers_file(tmp_path / "new" / "a.jsonl") as answers:
        answers.begin({"a": 1}, ["1", "2"])
        with pytest.raises(ConfigError, match="another process is writing it"), open_answers_file(answers.path):
            pass
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.jsonl.settings.json"]
