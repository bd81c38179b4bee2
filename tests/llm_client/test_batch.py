"""The Batch API: merged parts, no request twice, the cost limit, and a kill at every moment."""

import json

import pytest

from llava_jax.errors import ConfigError
from llava_jax.llm_client import batch as module
from llava_jax.llm_client import client
from llava_jax.llm_client.batch import ask_batches
from llava_jax.llm_client.cache import ReplyCache
from llava_jax.llm_client.client import Unfinished, ask_llm
from llava_jax.llm_client.settings import LLMSettings
from tests.fixtures.fake_batch_server import FakeBatchServer
from tests.llm_client.test_client import KEY, requests


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(module, "POLL", 0.001)


def text_of(body: dict) -> str:
    return body["messages"][-1]["content"]


def echo(body):
    return f"re {text_of(body)}", "stop"


def run(server, cache, requests, log=lambda line: None, **settings):
    return ask_batches(requests, LLMSettings("m", server.url, **settings), cache, log=log)


def texts(result) -> dict[str, str]:
    return {name: reply.text for name, reply in result.replies.items()}


def expected(count: int) -> dict[str, str]:
    return {str(i): f"re q{i}" for i in range(count)}


PRICES = dict(input_price=1.0, output_price=100.0, max_tokens=50)  # 100 + 10 tokens: $0.00055 in a batch


def test_batches_are_split_and_joined_by_custom_id(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINES", 8)
    lines = []
    with FakeBatchServer(echo) as server:
        result = run(server, tmp_path / "c", requests(20) | {"twin": requests(1)["0"]}, lines.append, **PRICES)
        assert texts(result) == expected(20) | {"twin": "re q0"} and not result.failed and result.new_count == 20
        inputs = [server.files[batch["input_file_id"]].splitlines() for batch in server.batches.values()]
        assert [len(lines) for lines in inputs] == [8, 8, 4]
        first = json.loads(inputs[0][0])["body"]
        assert first == {"model": "m", "messages": requests(1)["0"], "temperature": 0.0, "max_tokens": 50}
        assert result.spent == pytest.approx(20 * 0.00055) and result.lost == 0
        assert run(server, tmp_path / "c", requests(20), max_tokens=50).new_count == 0 and len(server.batches) == 3
    assert "up to $0.0500, at the price of the Batch API" in lines[1] and server.keys == {KEY}
    with ReplyCache(tmp_path / "c") as cache:
        assert not cache.ledger.live_batches() and not +cache.ledger.open_tries


def test_files_of_batches_are_limited_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with FakeBatchServer(echo) as server:
        assert texts(run(server, tmp_path / "c", requests(10))) == expected(10)
        inputs = [server.files[batch["input_file_id"]] for batch in server.batches.values()]
    assert len(inputs) > 2 and all(len(content) <= 1000 for content in inputs)


@pytest.mark.parametrize("statuses", [["expired"], ["failed"], ["cancelled"], ["expired", "failed", "expired"]])
def test_missing_parts_are_sent_again_and_nothing_is_paid_twice(tmp_path, statuses):
    with FakeBatchServer(echo, statuses) as server:
        result = run(server, tmp_path / "c", requests(9), **PRICES)
        assert texts(result) == expected(9) and set(server.paid.values()) == {1} and len(server.paid) == 9
        assert result.spent == pytest.approx(9 * 0.00055) and len(server.batches) == len(statuses) + 1


def test_failed_lines_are_tried_five_times_and_named(tmp_path):
    with FakeBatchServer(lambda body: 500 if text_of(body) == "q1" else echo(body)) as server:
        result = run(server, tmp_path / "c", requests(3))
    assert list(result.replies) == ["0", "2"] and result.failed == {"1": "500 not now (5 tries)"}
    assert len(server.batches) == 5


def test_three_failed_batches_in_a_row_stop_the_run(tmp_path):
    with FakeBatchServer(echo, ["failed"] * 9) as server:
        with pytest.raises(Unfinished, match="3 batches in a row failed, the last: batch failed: the queue is full"):
            run(server, tmp_path / "c", requests(3))
    assert len(server.batches) == 3 and not server.paid


def test_cost_limit_is_never_exceeded_and_uses_what_is_not_spent(tmp_path):
    """The worst case of a request is about $0.0025, five times what it costs: 20 cost $0.011."""
    with FakeBatchServer(echo) as server:
        result = run(server, tmp_path / "c", requests(20), **PRICES, max_cost=0.0135)
        assert texts(result) == expected(20) and len(server.batches) > 2
        assert run(server, tmp_path / "c", requests(20), **PRICES, max_cost=0.001).new_count == 0
        with pytest.raises(Unfinished, match=r"--max-cost \$0.02: \$0.01\d+ are spent, and the next request may cost"):
            run(server, tmp_path / "c", requests(40), **PRICES, max_cost=0.02)
        assert 0.0174 < len(server.paid) * 0.00055 <= 0.02 and set(server.paid.values()) == {1}


def test_a_batch_reserves_the_worst_case(tmp_path):
    with FakeBatchServer(echo, usage={"prompt_tokens": 18, "completion_tokens": 50}) as server:
        with pytest.raises(Unfinished):
            run(server, tmp_path / "c", requests(20), **PRICES, max_cost=0.01)
        assert len(server.paid) == 3  # 3 * 0.002509 < 0.01 < 4 * 0.002509


class Killed(BaseException):
    """Ends a run without any clean-up of its own."""


def killed_after(left, call):
    """A function that raises Killed, before or after its call, when `left` is used up."""

    def wrapper(*args, **options):
        if next(left, None) is None:
            raise Killed
        result = call(*args, **options)
        if next(left, None) is None:
            raise Killed
        return result

    return wrapper


def test_kill_at_every_write_and_request_repeats_no_paid_call(tmp_path, monkeypatch):
    """The moments: before and after each write of the ledger, and each request (also when the server has acted on it).
    Each killed run is resumed."""
    reached = 0
    for moment in range(0, 200, 3):  # there are about 60; every third, to save time
        cache, left = tmp_path / f"c{moment}", iter(range(moment))
        with monkeypatch.context() as patch, FakeBatchServer(echo, ["expired", "failed"]) as server:
            patch.setattr(ReplyCache, "_write", killed_after(left, ReplyCache._write))
            patch.setattr(module._BatchRun, "_create", killed_after(left, module._BatchRun._create))
            patch.setattr(module._BatchRun, "_call", killed_after(left, module._BatchRun._call))
            try:
                run(server, cache, requests(6))
                is_killed = False
            except Killed:
                is_killed = True
                patch.undo()
                assert texts(run(server, cache, requests(6))) == expected(6)
            assert set(server.paid.values()) == {1} and len(server.paid) == 6, moment
        if not is_killed:
            break
        reached += 1
    assert reached >= 15 and not is_killed


def test_batch_whose_id_was_lost_is_found_by_its_name(tmp_path):
    with FakeBatchServer(echo) as server:
        server.late = {1}  # the server creates the batch and answers 500
        assert texts(run(server, tmp_path / "c", requests(3))) == expected(3) and len(server.batches) == 1


def test_server_errors_are_retried(tmp_path):
    with FakeBatchServer(echo, early={0, 2, 4, 6}) as server:
        assert texts(run(server, tmp_path / "c", requests(3))) == expected(3)
        server.early = set(range(1000))
        with pytest.raises(Unfinished, match="an upload: 500 no .5 tries.; run the same command to resume"):
            run(server, tmp_path / "c", requests(4))


def test_requests_in_a_batch_are_not_sent_directly(tmp_path):
    with FakeBatchServer(echo) as server:
        with ReplyCache(tmp_path / "c") as cache:
            settings = LLMSettings("m", server.url)
            cache.add_batch("name", {settings.cache_key(requests(1)["0"]): "q0"})
        with pytest.raises(ConfigError, match="1 of the requests are in a batch; pass --batch"):
            ask_llm(requests(2), settings, tmp_path / "c", log=lambda line: None)


ODD_LINES = {
    "no JSON": b"{\n",
    "another id": json.dumps({"custom_id": "x", "response": {"status_code": 200, "body": {}}}).encode(),
    "an array": b"[]",
    "deep": b"[" * 100_000,
    "blank": b"\n\n",
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_odd_lines_of_results_are_ignored(tmp_path, name):
    with FakeBatchServer(echo) as server:
        end = server.end

        def end_with_odd_line(batch):
            end(batch)
            server.files[batch["output_file_id"]] += ODD_LINES[name]

        server.end = end_with_odd_line
        assert texts(run(server, tmp_path / "c", requests(3))) == expected(3) and len(server.batches) == 1


def test_unreadable_response_counts_as_paid_and_is_tried_again(tmp_path):
    with FakeBatchServer(echo) as server:
        end = server.end

        def end_broken(batch):
            end(batch)
            if batch["id"] == "batch_0":
                server.files[batch["output_file_id"]] = server.files[batch["output_file_id"]].replace(
                    b'"choices"', b'"no"'
                )

        server.end = end_broken
        result = run(server, tmp_path / "c", requests(1), **PRICES)
        assert texts(result) == expected(1) and result.lost == pytest.approx(0.005018) and len(server.batches) == 2


def test_key_is_in_no_file(tmp_path):
    with FakeBatchServer(lambda body: (f"Your key is {KEY}.", "stop")) as server:
        run(server, tmp_path / "c", requests(2))
    assert b"[key]" in (tmp_path / "c").read_bytes() and KEY.encode() not in (tmp_path / "c").read_bytes()
    assert all(KEY.encode() not in server.files[batch["input_file_id"]] for batch in server.batches.values())
