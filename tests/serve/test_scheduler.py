"""The scheduler with a real engine: order, limits, cancelling, faults, drain. Every job ends."""

import dataclasses
import queue
import threading
import time

import numpy as np
import pytest

from llava_jax.errors import DataError
from llava_jax.inference.engine import Prompt
from llava_jax.serve.refusal import Refusal
from llava_jax.serve.scheduler import Failure, Scheduler, Status
from tests.fixtures.tiny_models import random_params
from tests.serve.conftest import CONFIG, QUEUE, SLOTS, make_backend, running_scheduler

POISON = 400  # a token whose embedding is NaN


@pytest.fixture(scope="module")
def poisoned():
    params = random_params(CONFIG, std=0.2)
    name = next(path for path, x in params.items() if x.shape == (512, CONFIG.llm.width) and "embed" in path)
    params[name][POISON] = np.nan
    return make_backend(params)


@pytest.fixture
def ready(poisoned):
    with running_scheduler(poisoned) as scheduler:
        yield scheduler
        assert poisoned.engine.free_slots == SLOTS and not scheduler._jobs and not scheduler._waiting


class Client:
    """A job and the events that it gets."""

    def __init__(self, scheduler, tokens=range(5, 12), n=1, seed=0, **sampling):
        self.scheduler, self.events = scheduler, queue.Queue()
        self.job = scheduler.admit(self.events.put)
        sampling = {"max_new_tokens": 6, "temperature": 1.0, "seed": seed, **sampling}
        settings = dataclasses.replace(scheduler.backend.model.settings(**sampling), stop_ids=(), stop_strings=())
        scheduler.submit(self.job, Prompt(np.array(tokens, np.int32)), settings, n)
        self.n = n

    def result(self) -> list[list[int]] | Refusal:
        """The ids of the choices, or the refusal of a failure; releases the job."""
        ids, finished = [[] for _ in range(self.n)], 0
        while finished < self.n:
            event = self.events.get(timeout=10)
            if isinstance(event, Failure):
                self.scheduler.release(self.job)
                return event.refusal
            ids[event.choice].append(event.piece.id)
            finished += event.piece.finish is not None
        self.scheduler.release(self.job)
        return ids


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_jobs_start_in_order_of_arrival(ready):
    clients = [Client(ready, seed=i, max_new_tokens=4) for i in range(QUEUE)]
    results = [client.result() for client in clients]
    assert all(len(ids[0]) == 4 for ids in results)
    starts = [client.job.first_token for client in clients]
    assert starts == sorted(starts)


def test_choices_equal_single_answers_of_other_rows_and_share_their_prompt(ready):
    read = ready.backend.engine.counters.prompt_tokens_read
    tokens = range(30, 90)
    ids = Client(ready, tokens, n=4, seed=3).result()
    assert len({tuple(x) for x in ids}) == 4
    assert ready.backend.engine.counters.prompt_tokens_read - read == len(tokens) + 3  # the others: its last token
    assert Client(ready, tokens, n=1, seed=3).result() == ids[:1]


def test_full_queue_refuses_with_a_time_and_loses_nobody(ready):
    clients = [Client(ready, seed=i, max_new_tokens=100) for i in range(SLOTS)]
    wait_for(lambda: not ready._waiting)
    clients += [Client(ready, seed=i) for i in range(QUEUE)]
    with pytest.raises(Refusal) as raised:
        Client(ready)
    assert raised.value.status == 429 and raised.value.retry_after >= 1
    assert all(len(client.result()[0]) in (6, 100) for client in clients)
    assert len(Client(ready).result()[0]) == 6


@pytest.mark.parametrize("phase", ["preparing", "waiting", "reading", "running", "ended"])
def test_released_job_frees_its_place_in_every_phase(ready, phase):
    blockers = [Client(ready, seed=i, max_new_tokens=60) for i in range(SLOTS if phase == "waiting" else 1)]
    if phase == "preparing":
        ready.release(ready.admit(lambda event: None))
    else:
        client = Client(ready, range(30, 130) if phase == "reading" else range(5, 12), n=2, max_new_tokens=20)
        if phase == "running":
            client.events.get(timeout=10)
        if phase == "ended":
            client.result()
        ready.release(client.job)
    assert all(len(blocker.result()[0]) == 60 for blocker in blockers)  # undisturbed
    wait_for(lambda: ready.backend.engine.free_slots == SLOTS)


def test_released_job_gets_at_most_two_tokens_more(ready):
    for _ in range(20):
        client = Client(ready, max_new_tokens=110)
        client.events.get(timeout=10)
        ready.release(client.job)
        count = client.events.qsize()
        wait_for(lambda: ready.backend.engine.free_slots == SLOTS)
        assert client.events.qsize() - count <= 2


def test_poisoned_prompt_fails_alone(ready):
    alone = Client(ready, seed=1, max_new_tokens=30).result()
    good = Client(ready, seed=1, max_new_tokens=30)
    bad = Client(ready, [5, 6, POISON, 7], n=2, seed=1)
    refusal = bad.result()
    assert (refusal.status, refusal.code) == (500, "engine_fault")
    assert good.result() == alone == Client(ready, seed=1, max_new_tokens=30).result()


@pytest.mark.parametrize("method", ["read_chunk", "insert_prefix", "decode_slots", "copy_prefix"])
def test_device_failure_ends_no_other_answer(ready, method, monkeypatch):
    from llava_jax.inference import slots

    Client(ready, range(40, 70)).result()  # a prefix to insert
    alone = Client(ready, seed=4, max_new_tokens=20).result()
    original, failures = getattr(slots, method), []

    def failing(*args):
        if not failures:
            failures.append(1)
            raise MemoryError("RESOURCE_EXHAUSTED: out of memory")
        return original(*args)

    others = []
    if method != "decode_slots":  # a step is of all running answers
        others = [Client(ready, seed=4, max_new_tokens=20) for _ in range(2)]
        others[1].first = others[1].events.get(timeout=10).piece.id
    monkeypatch.setattr(slots, method, failing)
    Client(ready, range(40, 70), seed=9).result()  # with an answer or not, it ends
    wait_for(lambda: failures)
    monkeypatch.undo()
    if others:
        assert others[0].result() == alone and [[others[1].first, *others[1].result()[0]]] == alone
    assert Client(ready, seed=4, max_new_tokens=20).result() == alone


def test_engine_that_raises_fails_its_jobs_and_serves_the_next(ready, monkeypatch):
    client = Client(ready, max_new_tokens=100)
    client.events.get(timeout=10)
    monkeypatch.setattr(ready.backend.engine, "advance", lambda: 1 / 0)
    assert client.result().status == 500
    monkeypatch.undo()
    assert len(Client(ready).result()[0]) == 6 and ready.status is Status.READY


def test_slots_are_full_of_waiting_jobs_when_one_cannot_be_opened(ready, monkeypatch):
    original, failures = ready.backend.engine.open, []

    def open_slot(*args):
        if not failures:
            failures.append(1)
            raise RuntimeError("no")
        return original(*args)

    monkeypatch.setattr(ready.backend.engine, "open", open_slot)
    clients = [Client(ready, seed=i) for i in range(3)]
    results = [client.result() for client in clients]
    assert [isinstance(result, Refusal) for result in results] == [True, False, False]


def test_engine_that_stays_broken_ends_every_job(poisoned, monkeypatch):
    with running_scheduler(make_backend()) as scheduler:
        clients = [Client(scheduler, seed=i, max_new_tokens=100) for i in range(QUEUE)]
        clients[0].events.get(timeout=10)
        monkeypatch.setattr(scheduler.backend.engine, "advance", lambda: 1 / 0)
        monkeypatch.setattr(scheduler.backend.engine, "close", lambda slot: 1 / 0)
        assert {client.result().status for client in clients} <= {500, 503}
        wait_for(lambda: scheduler.status is Status.FAILED)
        with pytest.raises(Refusal) as raised:
            Client(scheduler)
        assert raised.value.status == 503


def test_model_that_does_not_load_is_the_reason_of_refusals():
    def load():
        raise DataError("no weights in /some/path")

    scheduler, changed = Scheduler(load, queue=1), threading.Event()
    with pytest.raises(Refusal) as raised:
        scheduler.admit(lambda event: None)
    assert raised.value.status == 503 and "being loaded" in raised.value.message
    scheduler.start(changed.set)
    assert changed.wait(5) and scheduler.status is Status.FAILED and "no weights" in str(scheduler.failure)
    with pytest.raises(Refusal) as raised:
        scheduler.admit(lambda event: None)
    assert raised.value.status == 503 and "/some/path" not in raised.value.message
    assert scheduler.stop(5)


def test_drain_answers_what_was_accepted_and_refuses_the_rest(poisoned):
    with running_scheduler(poisoned) as scheduler:
        clients, results = [Client(scheduler, seed=i, max_new_tokens=40) for i in range(QUEUE)], []
        thread = threading.Thread(target=lambda: results.extend(client.result() for client in clients))
        thread.start()
        draining = threading.Thread(target=lambda: results.append(scheduler.drain(20)))
        draining.start()
        wait_for(lambda: scheduler.status is Status.DRAINING)
        with pytest.raises(Refusal) as raised:
            Client(scheduler)
        assert raised.value.status == 503
        draining.join(20)
        thread.join(20)
        assert results.count(True) == 1 and sum(isinstance(x, list) and len(x[0]) == 40 for x in results) == QUEUE


def test_stop_ends_what_the_drain_has_not(poisoned):
    with running_scheduler(poisoned) as scheduler:
        clients = [Client(scheduler, seed=i, max_new_tokens=120) for i in range(QUEUE)]
        assert not scheduler.drain(0.0)
        assert scheduler.stop(10)
        assert all(isinstance(client.result(), Refusal | list) for client in clients)
        assert clients[-1].job.is_ended
    for slot, conversation in enumerate(poisoned.engine.conversations):
        assert conversation is None, slot


def test_receiver_that_is_gone_does_not_disturb_others(ready):
    def gone(event):
        raise RuntimeError("Event loop is closed")

    job = ready.admit(gone)
    settings = ready.backend.model.settings(max_new_tokens=5)
    ready.submit(job, Prompt(np.arange(5, 10, dtype=np.int32)), settings)
    assert len(Client(ready).result()[0]) == 6
    wait_for(lambda: job.is_ended)
    ready.release(job)


def test_metrics_count_what_happened(ready):
    def value(name, **labels):
        return ready.metrics.registry.get_sample_value(name, labels)

    before = {name: value(name) for name in ("vllm:generation_tokens_total", "vllm:e2e_request_latency_seconds_count")}
    assert len(Client(ready, n=2).result()[1]) == 6
    assert value("vllm:generation_tokens_total") == before["vllm:generation_tokens_total"] + 12
    assert value("vllm:e2e_request_latency_seconds_count") == before["vllm:e2e_request_latency_seconds_count"] + 1
    assert value("vllm:request_success_total", finished_reason="length") >= 2
    assert value("vllm:num_requests_running") == value("vllm:num_requests_waiting") == 0
    assert value("vllm:prefix_cache_queries_total") >= value("vllm:prefix_cache_hits_total") >= 0
    assert b"vllm:time_to_first_token_seconds_bucket" in ready.metrics.text()
