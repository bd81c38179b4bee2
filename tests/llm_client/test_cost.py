"""The cost cap: reserved, counted and never exceeded by more than one request."""

import json
import time

import pytest

from llava_jax.llm_client.client import Unfinished
from tests.fixtures.fake_llm_server import FakeServer
from tests.llm_client.test_client import (
    TRANSIENT,
    echo,
    requests,
    run,
    short_waits,  # noqa: F401
)


def test_max_cost_stops_within_one_request(tmp_path):
    """100 input tokens at $1 and 10 output tokens at $100 per million: $0.0011. Worst case (18, 50): $0.005018."""
    prices = dict(input_price=1.0, output_price=100.0, max_tokens=50, concurrency=4)
    with FakeServer(echo) as server:
        with pytest.raises(
            Unfinished, match=r"--max-cost \$0.02: \$0.0154 are spent.* with a larger --max-cost to resume; 14 of"
        ):
            run(server, tmp_path / "c", requests(40), **prices, max_cost=0.02)
        assert len(server.calls) == 14  # 14 * 0.0011 + 0.005018 > 0.02 >= 13 * 0.0011 + 0.005018
        with pytest.raises(Unfinished, match="14 of 40 replies are in"):  # cached replies count as spent
            run(server, tmp_path / "c", requests(40), **prices, max_cost=0.02)
        assert len(server.calls) == 14
        result = run(server, tmp_path / "c", requests(40), **prices, max_cost=0.1)
        assert result.spent == pytest.approx(40 * 0.0011) and result.lost == 0
        assert len(server.calls) == 40 and set(server.times.values()) == {1}


def test_worst_case_cost_is_reserved_for_requests_in_flight(tmp_path):
    """Otherwise four would be sent before the first reply."""

    def behave(call):
        time.sleep(0.05)
        call.reply("so", usage={"prompt_tokens": 18, "completion_tokens": 50})  # the worst case

    with FakeServer(behave) as server, pytest.raises(Unfinished):
        run(
            server, tmp_path / "c", requests(9), input_price=1.0, output_price=100.0, max_tokens=50, max_cost=0.0101,
            concurrency=4,
        )  # fmt: skip
    assert len(server.calls) == 2


@pytest.mark.parametrize("fault, tries", [("cut inside", 2), ("broken JSON", 2), ("429", 5), ("500", 5)])
def test_failed_tries_that_may_be_charged_count(tmp_path, fault, tries):
    settings = dict(input_price=1.0, output_price=100.0, max_tokens=50, max_cost=0.0101)
    with FakeServer(TRANSIENT[fault]) as server:
        if tries == 2:
            with pytest.raises(Unfinished, match=r"\$0.0100 are spent"):
                run(server, tmp_path / "c", requests(1), **settings)
        else:
            assert run(server, tmp_path / "c", requests(1), **settings).lost == 0
        assert len(server.calls) == tries


def test_reply_without_usage_costs_the_worst_case(tmp_path):
    for usage in (None, {}, {"prompt_tokens": "many", "completion_tokens": -1}):
        with FakeServer(lambda call, usage=usage: call.reply("so", usage=usage)) as server:
            result = run(
                server, tmp_path / f"c{usage}", requests(1), input_price=1.0, output_price=100.0, max_tokens=50
            )
            assert result.spent == pytest.approx(0.005018) and result.replies["0"].input_tokens is None


def test_request_in_flight_at_a_kill_counts_in_the_next_run(tmp_path):
    """The line of the request is on disk when the server gets it; without its outcome it counts with its worst case."""
    settings = dict(input_price=1.0, output_price=100.0, max_tokens=50, concurrency=1)
    lines = []

    def behave(call):
        lines.extend((tmp_path / "c").read_text().splitlines())
        call.reply("so")

    with FakeServer(behave) as server:
        assert run(server, tmp_path / "c", requests(1), **settings).lost == 0
        assert len(lines) == 1 and json.loads(lines[0])["sent"] == "q0"
        for _ in range(2):  # killed twice before the reply came
            (tmp_path / "killed").open("a").write(lines[0] + "\n")
        with pytest.raises(Unfinished, match=r"--max-cost \$0.012: \$0.0100 are spent"):
            run(server, tmp_path / "killed", requests(1), **settings, max_cost=0.012)
        assert len(server.calls) == 1
        result = run(server, tmp_path / "killed", requests(1), **settings, max_cost=0.02)
        assert result.lost == pytest.approx(2 * 0.005018) and result.spent == pytest.approx(0.0011)


@pytest.mark.parametrize("fault, open_tries", [("cut inside", 5), ("429", 0), ("500", 0)])
def test_tries_that_were_not_charged_are_closed_on_disk(tmp_path, fault, open_tries):
    settings = dict(input_price=1.0, output_price=100.0, max_tokens=50)
    with FakeServer(TRANSIENT[fault]) as server:
        first = run(server, tmp_path / "c", requests(1), **settings)
        server.behave = echo
        second = run(server, tmp_path / "c", requests(1), **settings)
    assert first.lost == second.lost == pytest.approx(open_tries * 0.005018)
