"""python -m llava_jax datagen instruct|scenes against a local server."""

import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llava_jax.__main__ import main
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.llm_client import batch, client
from tests.cli.test_eval_llm import start
from tests.fixtures.bench_scripts import bench_script
from tests.fixtures.fake_batch_server import FakeBatchServer
from tests.fixtures.fake_llm_server import FakeServer
from tests.fixtures.fake_teacher import kind_of, teach

KEY = "sk-unique-0123456789abcdef"
BOXES = [["bus", 0.1, 0.2, 0.63, 1.0]]
ROWS = [{"image": f"{i}.jpg", "captions": [f"Bus number {i}."], "boxes": BOXES if i % 2 else None} for i in range(40)]
FILES = ("settings.json", "contexts.jsonl", "checks.jsonl", "instruct.json")
PRICES = ["--input-price", "1", "--output-price", "100"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(batch, "POLL", 0.001)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def teacher(call):
    call.reply(*teach(call.body))


def command(folder: Path, server, *more: str, out: str = "out") -> list[str]:
    paths = ["datagen", "instruct", str(folder / "c.jsonl"), str(folder / out)]
    return [*paths, "--model", "fake", "--base-url", server.url, *more]


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def records(folder: Path, out: str = "out") -> list[dict]:
    return [json.loads(line) for line in (folder / out / "checks.jsonl").read_text().splitlines()]


def test_rows_are_made_once_and_every_request_is_accounted_for(folder, capsys):
    with FakeServer(teacher) as server:
        assert main(command(folder, server, *PRICES)) == 0
        out = capsys.readouterr().out
        assert (
            "40 images, 0 excluded" in out and "rows to make: 40 conversation (of 40 images), 20 detail (of 20" in out
        )
        assert "80 requests to fake" in out and out.index("output tokens: about $") < out.index("80 answered")
        before, kinds = contents(folder / "out"), Counter(kind_of(call.body) for call in server.calls)
        assert kinds == {"conversation": 40, "detail": 20, "reasoning": 20}
        assert server.calls[0].body["temperature"] == 0.2 and server.calls[0].body["max_tokens"] == 1024
        assert main(command(folder, server, *PRICES)) == 0 and len(server.calls) == 80
        assert contents(folder / "out") == before and "80 answered, 0 of them new" in capsys.readouterr().out
        assert main(command(folder, server, "--concurrency", "1", out="again")) == 0
    again = contents(folder / "again")
    assert all(again[name] == before[name] for name in FILES[1:])  # not the prices of settings.json
    rows = json.loads((folder / "out" / "instruct.json").read_text())
    kept = [record for record in records(folder) if record["kept"]]
    rejected = Counter(record["reason"] for record in records(folder) if not record["kept"])
    assert len(kept) + rejected.total() == 80 and len(rejected) >= 2 and len(rows) == len(kept)
    for row, record in zip(rows, kept, strict=True):
        row_id, turns, images = parse_row(row, "row")
        assert (row_id, images) == (record["id"], [record["image"]]) and len(turns) == 2 * len(record["pairs"])
    settings = json.loads((folder / "out" / "settings.json").read_text())
    assert settings["kinds"] == dict(kinds) and settings["model"] == "fake" and settings["prices"]["output"] == 100


def test_dry_run_sends_nothing_writes_nothing_needs_no_key(folder, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setitem(sys.modules, "openai", None)
    with FakeServer(teacher) as server:
        assert main(command(folder, server, "--dry-run", "--batch", "--verify-model", "v", *PRICES)) == 0
        assert not server.calls
    out = capsys.readouterr().out
    assert (
        "80 requests to fake" in out and "at the price of the Batch API" in out and "besides, one request to v" in out
    )
    for kind in ("conversation, 0/", "detail, 1/", "reasoning, 1/"):
        assert f"the first request for {kind}" in out
    assert "\n[user]\nBus number 1.\n\nbus: [0.1, 0.2, 0.63, 1.0]\n" in out and "nothing was sent" in out
    assert not (folder / "out").exists()


def test_limit_is_the_beginning_of_the_whole_run(folder):
    with FakeServer(teacher) as server:
        assert main(command(folder, server, "--limit", "7")) == 0 and len(server.calls) == 7
        first = records(folder)
        assert len(first) == 7
        assert main(command(folder, server)) == 0 and len(server.calls) == 80
    assert records(folder)[:7] == first


def test_max_cost_keeps_the_rows_so_far_and_resumes(folder, capsys):
    """A reply costs $0.0011, and at worst about $0.014: a prompt of 6,000 bytes and 80 tokens."""
    prices = [*PRICES, "--max-tokens", "80", "--concurrency", "4"]
    with FakeServer(teacher) as server:
        assert main(command(folder, server, *prices, "--max-cost", "0.05")) == 1
        sent = len(server.calls)
        err = capsys.readouterr().err
        assert err.startswith("error: --max-cost $0.05: $0.0") and "larger --max-cost to resume" in err
        assert 20 < sent < 46 and sent * 0.0011 <= 0.05
        states = Counter(record["reason"] == "no reply" for record in records(folder))
        assert states == {True: 80 - sent, False: sent} and json.loads((folder / "out" / "instruct.json").read_text())
        assert main(command(folder, server, *prices, "--max-cost", "2")) == 0 and len(server.calls) == 80


def test_second_model_verifies_and_counts_towards_the_limit(folder, capsys):
    flags = ["--verify-model", "v", "--verify-output-price", "7", *PRICES]
    with FakeServer(teacher) as server:
        assert main(command(folder, server, *flags)) == 0
        asked_of = Counter(call.body["model"] for call in server.calls)
        pairs = sum(len(record["pairs"]) for record in records(folder))
        assert asked_of == {"fake": 80, "v": pairs}
        assert {flag for record in records(folder) for flag in record["supported"]} == {True, False}
        kept = len(json.loads((folder / "out" / "instruct.json").read_text()))
        assert main(command(folder, server, *flags, "--drop", "unsupported", "source-leak")) == 0
        assert len(server.calls) == asked_of.total()
        assert len(json.loads((folder / "out" / "instruct.json").read_text())) < kept
        capsys.readouterr()
        # The teacher's replies cost $0.0880, which leaves nothing for the second model.
        assert main(command(folder, server, *flags, "--max-tokens", "80", "--max-cost", "0.0881", out="new")) == 1
        assert "--max-cost $0.0881: $0.0" in capsys.readouterr().err


def test_batch_api_gives_the_same_rows(folder):
    with FakeServer(teacher) as server:
        assert main(command(folder, server, out="direct")) == 0
    with FakeBatchServer(teach, ["expired", "failed"]) as server:
        assert main(command(folder, server, "--batch", "--verify-model", "v")) == 0
        assert set(server.paid.values()) == {1}
    for name in ("kept", "pairs", "reason", "claims"):
        values = [[record[name] for record in records(folder, out)] for out in ("direct", "out")]
        assert values[0] == values[1]
    assert any(record["supported"] for record in records(folder)) and records(folder)[0]["is_batch"]


BAD_INPUTS = {  # of CONTEXTS: (the second line, the message)
    "no captions": ({"captions": []}, "line 2 (id 'x'): no captions"),
    "outside": ({"boxes": [["bus", 0, 0, 2, 1]]}, "not inside the image"),
    "NaN": ({"boxes": [["bus", 0, 0, float("nan"), 1]]}, "NaN is not JSON"),
    "no category": ({"boxes": [[None, 0, 0, 1, 1]]}, "the category of a box must be"),
    "the same id": ({"id": "0"}, "the id '0' occurs twice"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_contexts_are_one_line_exit_2_and_write_nothing(folder, capsys, name):
    change, message = BAD_INPUTS[name]
    lines = [ROWS[0], ROWS[1] | {"id": "x"} | change]
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    check_refused(folder, capsys, [], message)


def test_huge_contexts_are_refused(folder, capsys):
    with (folder / "c.jsonl").open("wb") as file:
        file.truncate(1_000_000_001)
    check_refused(folder, capsys, [], "c.jsonl: has 1,000,000,001 bytes; at most 1,000,000,000 are read")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--detail-rows", "41"], "--detail-rows 41: there are 20 images with known boxes"),
        (["--drop", "boring"], "--drop boring: is no check"),
        (["--avoidance", "2"], "--avoidance is a share"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--max-cost", "1"], "--max-cost needs --input-price"),
        (["--shots", "gone"], "system_message.txt: cannot be read"),
        (["--exclude", "gone"], "gone: is no file"),
        (["--instances", "c.jsonl"], "--instances belongs to a file of COCO's captions"),
        (["--conversation-rows", "0", "--detail-rows", "0", "--reasoning-rows", "0"], "no rows to make"),
        (["--key-variable", "NO_KEY_HERE"], "no key: set the environment variable NO_KEY_HERE"),
    ],
)
def test_bad_flags_are_one_line_exit_2_and_write_nothing(folder, capsys, flags, message):
    check_refused(folder, capsys, flags, message)


def check_refused(folder: Path, capsys, flags: list[str], message: str) -> None:
    with FakeServer(teacher) as server:
        assert main(command(folder, server, *flags)) == 2 and not server.calls
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err and KEY not in err, err
    assert not (folder / "out").exists()


def test_folder_of_another_run_is_refused_and_unchanged(folder, capsys):
    with FakeServer(teacher) as server:
        assert main(command(folder, server)) == 0
        before = contents(folder / "out")
        for flags, name in (
            (["--seed", "1"], "seed"),
            (["--temperature", "1"], "temperature"),
            (["--detail-rows", "3"], "kinds"),
        ):
            assert main(command(folder, server, *flags)) == 2
            assert f"belongs to a run with another {name}" in capsys.readouterr().err
        (folder / "c.jsonl").write_text((folder / "c.jsonl").read_text().replace("number 3.", "number three."))
        assert main(command(folder, server)) == 2 and "another contexts_sha256" in capsys.readouterr().err
        assert len(server.calls) == 80 and contents(folder / "out") == before


def test_excluded_images_get_no_rows(folder):
    (folder / "x.txt").write_text("0.jpg\n")
    (folder / "questions.jsonl").write_text('{"image": "val/COCO_val2014_1.jpg", "text": "?"}\n')
    with FakeServer(teacher) as server:
        flags = ["--exclude", str(folder / "x.txt"), "--exclude", str(folder / "questions.jsonl")]
        assert main(command(folder, server, *flags)) == 0
    assert {"0", "1"} & {record["id"] for record in records(folder)} == set()


def test_failed_requests_are_retried_by_the_same_command(folder, capsys):
    fails = True
    behave = lambda call: call.fail(500) if fails and "number 2." in call.text else teacher(call)  # noqa: E731
    with FakeServer(behave) as server:
        assert main(command(folder, server)) == 1
        assert [record["id"] for record in records(folder) if record["reason"] == "no reply"] == ["2"]
        assert "not kept, no reply: 1" in capsys.readouterr().out
        fails = False
        assert main(command(folder, server)) == 0
    assert "no reply" not in {record["reason"] for record in records(folder)}


@pytest.mark.parametrize("sent, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_run_resumes_after_a_signal_without_repeating_requests(folder, sent, code):
    """The server answers 30 requests and then hangs, so that the signal arrives while requests are in flight."""
    behave = lambda call: teacher(call) if len(server.calls) <= 30 else server.hang(call)  # noqa: E731
    ledger = folder / "out" / "ledger.jsonl"
    with FakeServer(behave) as server:
        process = start(command(folder, server, "--concurrency", "4"))
        while process.poll() is None and not (ledger.exists() and ledger.read_bytes().count(b'"finish"') == 30):
            time.sleep(0.02)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in err, err
        assert sent == signal.SIGKILL or "30 of 80 replies are in" in out
    with FakeServer(teacher) as again:
        assert main(command(folder, again)) == 0 and len(again.calls) == 50
        assert main(command(folder, again, out="undisturbed")) == 0
    resumed, undisturbed = contents(folder / "out"), contents(folder / "undisturbed")
    assert all(resumed[name] == undisturbed[name] for name in FILES)
    assert not any(KEY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_kills_at_random_moments_repeat_no_paid_call(tmp_path, monkeypatch):
    script = bench_script("check_datagen")
    monkeypatch.setattr(sys, "argv", ["check", "--images=8", "--kills=1", f"--folder={tmp_path}"])
    assert script.main() == 0


def test_scenes_are_contexts_with_exact_boxes(tmp_path, capsys):
    assert main(["datagen", "scenes", str(tmp_path / "s"), "--count", "5", "--image-size", "48"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "s" / "contexts.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and {path.name for path in (tmp_path / "s" / "images").iterdir()} == {
        r["image"] for r in rows
    }
    for row in rows:
        assert 1 <= len(row["captions"]) <= 5 and all(box[0] in row["captions"][0] for box in row["boxes"])
    with FakeServer(teacher) as server:
        paths = [str(tmp_path / "s" / "contexts.jsonl"), str(tmp_path / "out")]
        assert main(["datagen", "instruct", *paths, "--model", "m", "--base-url", server.url]) == 0
        assert len(server.calls) == 15
    assert main(["datagen", "scenes", str(tmp_path / "s")]) == 2 and "exists already" in capsys.readouterr().err
    assert main(["datagen", "scenes", str(tmp_path / "t"), "--count", "0"]) == 2
