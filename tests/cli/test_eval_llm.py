"""python -m llava_jax eval scienceqa ask|judge against a local server."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llava_jax.__main__ import main
from llava_jax.llm_client import client as module
from tests.evaluation.scienceqa.test_ensemble import BLOCKS, RIGHT, files
from tests.fixtures.fake_llm_server import FakeServer
from tests.fixtures.scienceqa import write_folder

ASK, JUDGE, ENSEMBLE = (["eval", "scienceqa", verb] for verb in ("ask", "judge", "ensemble"))
KEY = "sk-unique-0123456789abcdef"
DIFFERING = {str(i) for i in range(80, 190)}  # by BLOCKS


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_WAIT", 0.002)


@pytest.fixture
def folder(tmp_path) -> Path:
    """200 test problems, 5 train problems, and the answers of ours and other."""
    problems = {str(i): {"question": f"Is this number {i}?"} for i in range(200)}
    problems |= {f"t{i}": {"question": f"Shown {i}?", "solution": "S.", "split": "train"} for i in range(5)}
    ours, other, _ = files(BLOCKS)
    rows = [{"question_id": pid, "text": f"We say: {text}"} for pid, text in ours.texts.items()]
    (tmp_path / "ours.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "gpt4.json").write_text(json.dumps({"outputs": {p: f"I say: {t}" for p, t in other.texts.items()}}))
    write_folder(tmp_path / "sqa", problems)
    return tmp_path


def judging(folder: Path, server: FakeServer, *more: str) -> list[str]:
    files = [str(folder / "ours.jsonl"), str(folder / "gpt4.json")]
    paths = ["--problems", str(folder / "sqa"), "--out", str(folder / "judge.jsonl")]
    return [*JUDGE, *files, *paths, "--model", "fake", "--base-url", server.url, *more]


def asking(folder: Path, server: FakeServer, *more: str) -> list[str]:
    paths = ["--problems", str(folder / "sqa"), "--out", str(folder / "out.json")]
    return [*ASK, *paths, "--model", "fake", "--base-url", server.url, *more]


def problem_of(call) -> str:
    """The id of the problem in a request."""
    return re.search(r"number (\d+)\?", call.text)[1]


def verdict(call) -> None:
    """Replies with the judge's answer of BLOCKS."""
    text = files(BLOCKS)[2].texts.get(problem_of(call), "")
    call.reply(f"Hm. {text}")


def test_judge_is_asked_about_exactly_the_differing_problems(folder, capsys):
    """Its replies give the counts of the planted files."""
    with FakeServer(verdict) as server:
        command = judging(folder, server)
        assert main(command) == 0 and main(command) == 0
        assert Counter(map(problem_of, server.calls)) == Counter(dict.fromkeys(DIFFERING, 1))
        for call in server.calls:
            assert call.body["temperature"] == 0
            ours, other = call.text.split("[Assistant 2]")
            assert "We say: " in ours and "I say: " in other and "We say: " not in other
    out = capsys.readouterr().out
    assert "the two differ on 110 of 200 problems of split test" in out and "110 answered, 110 of them new" in out
    assert "0 to send, 110 in the cache" in out and "110 answered, 0 of them new" in out
    rows = [json.loads(line) for line in (folder / "judge.jsonl").read_text().splitlines()]
    assert {row["question_id"] for row in rows} == DIFFERING and rows[0]["model"] == "fake-1"
    command = [*ENSEMBLE, *command[3:7], "--judge", str(folder / "judge.jsonl"), "--unparsed", "wrong"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for name, right in RIGHT.items():
        assert re.search(rf"^{name} .* {right / 2:.2f}$", printed, re.M), name
    assert "of which the judge answered 85; it also answered 0 others" in printed


def test_ask_writes_a_file_that_ensemble_reads(folder, capsys):
    """Two problems are equal, one is refused, one fails; the same command retries the failed one."""
    problems = json.loads((folder / "sqa" / "problems.json").read_text())
    problems["1"]["question"] = problems["0"]["question"]
    (folder / "sqa" / "problems.json").write_text(json.dumps(problems))

    def behave(call):
        if problem_of(call) == "7" and fails:
            call.fail(500, "oh\x1b[31m no")
        elif problem_of(call) == "8":
            call.reply(None, refusal="No.")
        else:
            call.reply("The answer is A. BECAUSE: so.")

    fails = True
    with FakeServer(behave) as server:
        assert main(asking(folder, server)) == 1
        assert len(server.calls) == 199 - 1 + 5
        out = capsys.readouterr().out
        assert "200 requests to fake" in out and "199 to send, 1 equal to another" in out
        assert "199 answered, 198 of them new; 1 refused or empty, 0 cut at 512 tokens; 1 failed\n" in out
        assert "  7: 500 oh[31m no (5 tries)" in out and "\x1b" not in out
        record = json.loads((folder / "out.json").read_text())
        assert len(record["outputs"]) == 199 and record["outputs"]["8"] == "No." and record["refused"] == ["8"]
        assert list(record["failed"]) == ["7"] and record["answered_as"] == {"fake-1": 199}
        contents = [turn["content"] for turn in server.calls[0].body["messages"]]
        assert len(contents) == 6 and len(set(record["shots"])) == 2
        assert contents[1].startswith(f"Can you explain Shown {record['shots'][0][1:]}?") and contents[2].endswith(
            "BECAUSE: S."
        )
        fails = False
        assert main(asking(folder, server)) == 0 and len(server.calls) == 204
    record = json.loads((folder / "out.json").read_text())
    assert list(record["outputs"]) == [str(i) for i in range(200)] and record["failed"] == {}
    capsys.readouterr()
    command = [*ENSEMBLE, str(folder / "ours.jsonl"), str(folder / "out.json"), "--problems", str(folder / "sqa")]
    assert main([*command, "--unparsed", "wrong"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^other .* 99.50$", printed, re.M) and "no answer to 1 (0.50%)" in printed


def test_dry_run_sends_nothing_writes_nothing_needs_no_key(folder, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setitem(sys.modules, "openai", None)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    prices = ["--input-price", "2.5", "--output-price", "10"]
    with FakeServer(verdict) as server:
        assert main(judging(folder, server, "--dry-run", *prices)) == 0
        out = capsys.readouterr().out
        assert "110 requests to fake" in out and re.search(r"output tokens: about \$0\.\d+ and up to \$0.5632", out)
        assert "the request of problem 80, " in out and "Is this number 80?" in out and out.count("[Assistant 1]") == 1
        assert "nothing was sent" in out
        assert main(asking(folder, server, "--dry-run")) == 0
        out = capsys.readouterr().out
        assert "200 requests to fake" in out and out.count("[user]") == 3 and "cost unknown" in out
        assert not server.calls
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_max_cost_stops_before_writing_and_says_how_to_continue(folder, capsys):
    prices = ["--input-price", "1", "--output-price", "1000", "--max-tokens", "10"]
    with FakeServer(verdict) as server:  # $0.0101 each, the worst case is slightly more
        assert main(judging(folder, server, *prices, "--max-cost", "0.2")) == 1
        assert len(server.calls) == 19
        err = capsys.readouterr().err
        assert err.startswith("error: --max-cost $0.2: $0.1919 are spent") and err.count("\n") == 1
        assert (
            "a larger --max-cost to resume; 19 of 110 replies are in" in err and not (folder / "judge.jsonl").exists()
        )
        assert main(judging(folder, server, *prices, "--max-cost", "2")) == 0
        assert len(server.calls) == 110
    assert "output tokens: $1.1110\n" in capsys.readouterr().out


def test_judge_sends_nothing_if_the_answers_agree(folder, capsys):
    with FakeServer(verdict) as server:
        same, command = [str(folder / "ours.jsonl")] * 2, judging(folder, server)
        assert main([*JUDGE, *same, *command[5:]]) == 0 and not server.calls
    assert "no judge is needed" in capsys.readouterr().out and not (folder / "judge.jsonl").exists()


def test_ask_writes_nothing_if_every_request_fails(folder, capsys):
    write_folder(folder / "sqa", {str(i): {"question": f"Is this number {i}?"} for i in range(3)})
    with FakeServer(lambda call: call.fail(500)) as server:
        assert main(asking(folder, server, "--shots", "0")) == 1 and len(server.calls) == 15
    assert "0 answered" in capsys.readouterr().out and not (folder / "out.json").exists()


def test_errors_are_one_line_and_exit_2(folder, capsys, monkeypatch):
    few = folder / "few.json"
    few.write_text(json.dumps({"outputs": {"1": "The answer is A."}}))
    with FakeServer(lambda call: call.fail(404, "no model called fake")) as server:
        judge = judging(folder, server)
        for command, message in [
            ([*JUDGE, judge[3], str(few), *judge[5:]], "few.json: 199 of 200 problems have no answer, the first: 0"),
            (judging(folder, server, "--max-cost", "1"), "--max-cost needs --input-price"),
            (judging(folder, server, "--key-variable", KEY), "--key-variable must be the upper-case name of"),
            (asking(folder, server, "--shots", "6"), "--shots 6: only 5 train problems have"),
            (asking(folder, server, "--cache", str(few)), "few.json: line 1 is not a line of a reply cache"),
            (asking(folder, server), f"{server.url}: 404 no model called fake"),
        ]:
            assert main(command) == 2, command
            err = capsys.readouterr().err
            assert err.startswith("error: ") and err.count("\n") == 1 and message in err and KEY not in err, err
        monkeypatch.delenv("OPENAI_API_KEY")
        assert main(asking(folder, server)) == 2
        assert "no key: set the environment variable OPENAI_API_KEY" in capsys.readouterr().err


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """Starts python -m llava_jax COMMAND with short retry delays and the default SIGINT handler.

    A background process of a shell ignores SIGINT, and its children inherit that.
    """
    code = (
        "import signal, sys; from llava_jax.__main__ import main; from llava_jax.llm_client import client; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); client.FIRST_WAIT = 0.002; "
        "sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *command], cwd=Path(__file__).parents[2], env=os.environ | environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("sent, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_judge_resumes_after_a_signal_without_repeating_requests(folder, sent, code):
    """The server answers 30 requests and then hangs, so that the signal arrives while requests are in flight."""

    def behave(call):
        if len(server.calls) <= 30:
            verdict(call)
        else:
            server.hang(call)

    cache = folder / "judge.jsonl.cache.jsonl"
    with FakeServer(behave) as server:
        process = start(judging(folder, server, "--concurrency", "4"))
        while process.poll() is None and not (cache.exists() and cache.read_bytes().count(b'"finish"') == 30):
            time.sleep(0.02)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in err, err
        if sent != signal.SIGKILL:
            assert "30 of 110 replies are in" in out and "; run the same command again to resume" in out
        assert not (folder / "judge.jsonl").exists()
    answered = {problem_of(call) for call in server.calls[:30]}
    with FakeServer(verdict) as again:
        assert main(judging(folder, again)) == 0
        assert Counter(map(problem_of, again.calls)) == Counter(dict.fromkeys(DIFFERING - answered, 1))
        assert len(again.calls) == 80


@pytest.mark.parametrize("status, code", [(401, 2), (500, 1)])
def test_api_key_is_in_no_file_and_no_log(folder, status, code):
    """The library logs at debug level, and the server repeats the key in every reply."""

    def behave(call):
        if problem_of(call) == "90":
            call.fail(status, f"what about {call.key}?")
        elif int(problem_of(call)) % 7 == 0 and call.times == 1:
            call.fail(503, f"{call.key} later", X_Key=call.key)
        else:
            call.reply(f"{call.key}: The answer is A.")

    with FakeServer(behave) as server:
        process = start(judging(folder, server), OPENAI_LOG="debug")
        output = "".join(process.communicate(timeout=60))
    assert process.returncode == code and "Traceback" not in output and "DEBUG" in output, output
    message = {401: "401, the key in OPENAI_API_KEY is not accepted", 500: "  90: 500 what about [key]? (5 tries)"}
    assert message[status] in output
    contents = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"[key]: The answer is A." in contents
    for secret in (KEY, KEY[3:], KEY[:-6]):
        assert secret not in output and secret.encode() not in contents
