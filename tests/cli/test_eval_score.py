"""python -m llava_jax eval scienceqa score|ensemble: output, files and exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava_jax.__main__ import main
from tests.evaluation.scienceqa.test_ensemble import BLOCKS, files
from tests.fixtures.images import encoded, noise
from tests.fixtures.scienceqa import write_folder
from tests.output.test_html_page import Page

SCORE, ENSEMBLE = ["eval", "scienceqa", "score"], ["eval", "scienceqa", "ensemble"]
EVIL = "<script>alert(1)</script> & \ud83d"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five problems: one with an image, one whose image is missing."""
    problems = {
        "1": {"question": EVIL, "choices": ["<b>one</b>", "two"], "image": "image.png"},
        "2": {"answer": 1, "image": "image.png", "subject": "social science"},
        "3": {"hint": "<i>Look.</i>"},
        "4": {"choices": ["x", "y"]},
        "5": {"answer": 2, "subject": "language science", "grade": "grade9"},
    }
    folder = write_folder(tmp_path / "sqa", problems)
    (folder / "images" / "test" / "1").mkdir(parents=True)
    (folder / "images" / "test" / "1" / "image.png").write_bytes(encoded(noise(40, 30), "PNG"))
    return folder


def lines(path: Path, texts: dict[str, str], shown: str | None = None) -> str:
    """Writes an answers file. shown: the ids whose prompt contains an image; None: the file has no prompts."""
    rows = [{"question_id": pid, "text": text} for pid, text in texts.items()]
    for row in rows if shown is not None else []:
        row["prompt"] = "<image>\nWhich?" if row["question_id"] in shown else "Which?"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def answers(tmp_path) -> str:
    return lines(
        tmp_path / "a.jsonl",
        {"1": f"{EVIL} The answer is A.", "2": "A", "3": "hm", "4": "The answer is C.", "5": "C", "99": "A"},
    )


def test_score_prints_all_counts(folder, answers, capsys):
    assert main([*SCORE, answers, "--problems", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "a.jsonl: 6 answers; scored: 5 to problems of split test; ignored: 1 to other problems" in out
    assert "2 of 5 unparsed (40.00%), 1 without a letter, 1 with a letter of no choice; they count as wrong" in out
    (row,) = re.findall(r"^a\.jsonl +(.*)$", out, re.M)
    assert row.split() == ["33.33", "0.00", "100.00", "0.00", "50.00", "50.00", "25.00", "100.00", "40.00"]
    (row,) = re.findall(r"^  right/all +(.*)$", out, re.M)
    assert row.split() == ["1/3", "0/1", "1/1", "0/1", "1/2", "1/2", "1/4", "1/1", "2/5"]
    assert "IMG accuracy" not in out, "the file has no prompts"
    assert re.search(r"^LLaVA 13B v0 +90.36 .* 90.92$", out, re.M) and re.search(
        r"^physics +2/5 +40.00  11.76 to 76.93$", out, re.M
    )


def test_img_accuracy_covers_prompts_with_an_image(folder, tmp_path, capsys):
    """Whether the problem has an image or not; missing answers do not count."""
    file = lines(tmp_path / "a.jsonl", {"1": "A", "2": "A", "4": "B", "99": "A"}, shown="1, 4, 99")
    out = tmp_path / "score.json"
    assert main([*SCORE, file, "--problems", str(folder), "--json", str(out)]) == 1
    assert "IMG accuracy by prompt: 50.00 (1/2, 95% 9.45 to 90.55), of the answers" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["shown"]["correct"] == 1 and record["shown"]["count"] == record["columns"]["IMG"]["count"] == 2
    assert main([*SCORE, lines(tmp_path / "a.jsonl", {"1": "A"}, shown=""), "--problems", str(folder)]) == 1
    assert "IMG accuracy by prompt: - (0/0, 95% -), of" in capsys.readouterr().out


def test_missing_answers_exit_1(folder, tmp_path, capsys):
    some = lines(tmp_path / "some.jsonl", {"1": "A", "3": "A", "4": "hm"})
    assert main([*SCORE, some, "--problems", str(folder), "--result", str(tmp_path / "r.json")]) == 1
    assert "2 problems have no answer, they count as wrong; the first: 2" in capsys.readouterr().out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["results"] == {"1": 0, "2": -1, "3": 0, "4": -1, "5": -1} and result["outputs"]["5"] == "FAILED"
    assert (result["acc"], result["correct"], result["count"]) == (40.0, 2, 5)
    assert main([*SCORE, some, "--problems", str(folder), "--unparsed", "random", "--seed", "3"]) == 1
    out = capsys.readouterr().out
    assert "2 problems have no answer, they do not count" in out and "a random choice (seed 3)" in out
    assert re.search(r"^  right/all .* [23]/3$", out, re.M)


def test_json_contains_every_answer_and_every_flip(folder, answers, tmp_path, capsys):
    other = lines(tmp_path / "b.jsonl", {"1": "B", "2": "B", "3": "A", "4": "A"})
    out = tmp_path / "score.json"
    assert main([*SCORE, answers, "--problems", str(folder), "--against", other, "--json", str(out)]) == 0
    record, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert record["columns"]["NAT"]["correct"] == 1 and record["topics"]["physics"]["count"] == 5
    assert record["columns"]["Avg"]["interval"] == pytest.approx([11.76, 76.93], abs=0.01)
    assert record["unparsed_answers"] == ["3", "4"] and record["missing"] == []
    assert [item["letter"] for item in record["items"]] == ["A", "A", None, "C", "C"]
    against = record["against"]
    assert (against["only_first"], against["only_second"], against["both"], against["second_missing"]) == (2, 3, 0, 1)
    assert [flip["first"]["id"] for flip in against["flips"]] == ["1", "2", "3", "4", "5"] and against["p"] == 1
    assert "on 5 problems: both right 0, only a.jsonl 2, only the other 3, neither 0; -20.00 points" in printed
    assert "  3: no letter, the other A; right is A" in printed and "  5: C, the other no answer; right is C" in printed


def test_control_characters_of_the_problems_are_not_printed(tmp_path, capsys):
    evil = {"\x1b[31m1\ud83d": {"topic": "\x1b]0;owned\x07 \ud83d"}}
    folder = write_folder(tmp_path / "sqa", evil)
    first = lines(tmp_path / "a.jsonl", dict.fromkeys(evil, "A"))
    second = lines(tmp_path / "b.jsonl", dict.fromkeys(evil, "B"))
    assert main([*SCORE, first, "--problems", str(folder), "--against", second]) == 0
    out = capsys.readouterr().out
    assert "]0;owned ?" in out and "[31m1?: A, the other B" in out and "\x1b" not in out and "\x07" not in out


def test_only_the_first_differing_results_are_printed(tmp_path, capsys):
    pids = [str(i) for i in range(25)]
    result = tmp_path / "r.json"
    result.write_text(json.dumps({"results": dict.fromkeys(pids, 1), "outputs": dict.fromkeys(pids, "A")}))
    folder, out = write_folder(tmp_path / "sqa", {pid: {} for pid in pids}), tmp_path / "score.json"
    assert main([*SCORE, str(result), "--problems", str(folder), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "results in the file: 0 of 25 equal the index that the strict parser finds" in printed
    assert printed.count("the text says A, results has 1 (B)") == 20 and "  and 5 more; --json lists all" in printed
    assert list(json.loads(out.read_text())["differing_results"]) == pids


def test_result_of_an_index_file_has_no_texts(folder, tmp_path):
    bare, out = tmp_path / "bare.json", tmp_path / "out.json"
    bare.write_text(json.dumps({"results": dict.fromkeys("12345", 1), "outputs": {}}))
    assert main([*SCORE, str(bare), "--problems", str(folder), "--parser", "results", "--result", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record == {"acc": 20.0, "correct": 1, "count": 5, "results": dict.fromkeys("12345", 1), "outputs": {}}


def test_page_shows_every_answer_and_contains_no_script(folder, answers, tmp_path):
    other = lines(tmp_path / "b.jsonl", {pid: "A" for pid in "12345"})
    page = tmp_path / "new" / "page.html"
    assert main([*SCORE, answers, "--problems", str(folder), "--against", other, "--page", str(page)]) == 0
    text = page.read_text()
    shown = Page(text)  # checks: no external resources, no scripts, all elements closed
    assert "script" not in shown.tags and shown.text.count("<script>alert(1)</script> & ?") >= 2
    assert "<b>one</b>" in shown.text and "<i>Look.</i>" in shown.text
    assert [picture.size for picture in shown.pictures] == [(40, 30)]
    assert "image test/2/image.png is missing or unreadable" in shown.text
    kinds = re.findall('<article class="([a-z ]+)"', text)
    assert kinds == ["right", "wrong", "unparsed flip", "unparsed flip", "right flip"]
    for kind, count in {"right": 2, "wrong": 1, "unparsed": 2, "flip": 3}.items():
        assert f"body:has(#show-{kind}:checked) article:not(.{kind}) {{ display: none }}" in text
        assert f'id="show-{kind}"' in text and f"<span>{kind} {count}</span>" in text
    assert 'id="show-missing"' not in text
    articles = text.split("<article ")[1:]
    assert ["the other file" in article for article in articles] == ["flip" in kind for kind in kinds]
    marks = [re.findall(r'class="badge[^>]*>([^<]+)<', choice) for choice in re.findall("<li.*?</li>", articles[4])]
    assert marks == [["the other file"], [], ["right", "answered"]]
    assert "<dt>split</dt><dd>test</dd>" in text and "<dt>other file</dt><dd>b.jsonl</dd>" in text
    assert "chance" not in shown.text and "the dotted line is at 33.3" in text  # three choices


def test_released_result_file_is_reproduced_byte_equal(real_data, tmp_path, capsys):
    """The problems are built so that the file's number of correct answers holds."""
    path = real_data / "published" / "test_sqa_llava_13b_v0.json"
    results = json.loads(path.read_text())["results"]
    problems = {
        pid: {"choices": list("vwxyz"), "answer": index if i < 3855 else (index + 1) % 5}
        for i, (pid, index) in enumerate(results.items())
    }
    problems["3247"] |= {"choices": ["v", "w"], "answer": 1}
    folder, out = write_folder(tmp_path / "sqa", problems), tmp_path / "out.json"
    command = [*SCORE, str(path), "--problems", str(folder), "--result", str(out)]
    assert main([*command, "--parser", "results"]) == 0 and out.read_bytes() == path.read_bytes()
    assert main(command) == 0
    assert "3247: the text says D, none of 2 choices, results has 1 (B)" in capsys.readouterr().out
    again = json.loads(out.read_text())
    assert {pid for pid in results if again["results"][pid] != results[pid]} == {"3247"}
    assert again["results"]["3247"] == -1 and again["correct"] == 3854


@pytest.fixture
def ensemble_args(tmp_path) -> list[str]:
    """Arguments: ours, other (in the format of GPT-4's released file), --judge FILE, --problems FOLDER."""
    ours, other, judge = files(BLOCKS)
    (tmp_path / "gpt4.json").write_text(json.dumps({"outputs": other.texts}))
    write_folder(tmp_path / "sqa", {str(i): {} for i in range(200)})
    paths = [lines(tmp_path / "ours.jsonl", ours.texts), str(tmp_path / "gpt4.json")]
    paths += ["--judge", lines(tmp_path / "judge.jsonl", judge.texts)]
    return [*paths, "--problems", str(tmp_path / "sqa")]


def test_ensemble_prints_and_writes_the_planted_counts(ensemble_args, tmp_path, capsys):
    out, result = tmp_path / "e.json", tmp_path / "r.json"
    flags = ["--unparsed", "wrong", "--result", str(result)]
    assert main([*ENSEMBLE, *ensemble_args, *flags, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    for name, percent in {"ours": 72.5, "other": 57.5, "complement": 65, "judge": 80, "upper bound": 90}.items():
        assert re.search(rf"^{name} .* {percent:.2f}$", printed, re.M), name
    assert (
        "ours has no answer to 0 (0.00%); the other has no answer to 15 (7.50%); an unknown choice is wrong" in printed
    )
    assert "the two differ on 110, of which the judge answered 85; it also answered 0 others" in printed
    record = json.loads(out.read_text())
    assert len(record["differing"]) == 110 and record["columns"]["judge"]["Avg"]["correct"] == 160
    written = json.loads(result.read_text())
    assert (written["acc"], written["correct"], written["count"], written["outputs"]) == (80.0, 160, 200, {})
    assert main([*SCORE, str(result), "--problems", str(tmp_path / "sqa"), "--parser", "results"]) == 0
    assert re.search(r"^  right/all .* 160/200$", capsys.readouterr().out, re.M)
    assert main([*ENSEMBLE, *ensemble_args[:2], *ensemble_args[4:], *flags]) == 0
    assert (
        json.loads(result.read_text())["correct"] == 130
        and "judge" not in capsys.readouterr().out.split("published")[0]
    )


def test_errors_are_one_line_and_exit_2(folder, answers, tmp_path, capsys):
    (tmp_path / "torn.jsonl").write_text('{"question_id": "1", "te')
    nothing = lines(tmp_path / "none.jsonl", {"99": "A"})
    problems = ["--problems", str(folder)]
    for command, message in [
        ([*SCORE, str(tmp_path / "gone"), *problems], "gone: cannot be read (No such file or directory)"),
        ([*SCORE, str(tmp_path / "torn.jsonl"), *problems], "torn.jsonl: line 1 is broken JSON"),
        ([*SCORE, nothing, *problems], "no answer to a problem of split 'test'"),
        ([*SCORE, answers, *problems, "--against", nothing], "none.jsonl: no answer to a problem of split 'test'"),
        ([*SCORE, answers, *problems, "--split", "dev"], "there is no split 'dev'"),
        ([*SCORE, answers, *problems, "--parser", "results"], "has no indices (results); try --parser strict"),
        ([*SCORE, answers, "--problems", str(tmp_path)], "problems.json does not exist"),
        ([*SCORE, answers, *problems, "--image-folder", str(tmp_path / "gone")], "image folder of"),
        ([*SCORE, answers, *problems, "--page", f"{answers}/p.html"], "p.html: cannot be written"),
        ([*ENSEMBLE, answers, nothing, *problems], "no problem of this split is answered by both"),
        ([*ENSEMBLE, answers, nothing, *problems, "--judge", answers], "5 of 5 problems have no answer, the first: 1"),
    ]:
        assert main(command) == 2, command
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_closed_pipe_prints_no_error(folder, answers):
    code = f"{sys.executable} -m llava_jax eval scienceqa score {answers} --problems {folder} | true"
    root = Path(__file__).parents[2]
    done = subprocess.run(["bash", "-c", code], cwd=root, capture_output=True, env=os.environ, timeout=120)
    assert done.stderr == b""
