"""The watchdog on a simulated clock. See also test_verdict.py, and test_processes.py with real processes."""

import json
import time

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.runtime.distributed import DistributedConfig
from llava_jax.runtime.heartbeat import READING
from llava_jax.runtime.verdict import SLOW_FACTOR
from llava_jax.runtime.watchdog import Watchdog

INTERVAL = 3  # seconds, with the default of --lost_after


class Cluster:
    """Three processes on a simulated clock; those in `frozen` are dead."""

    log = print

    def __init__(self, folder, patience=100):
        self.now, self.frozen, self.unreachable = 1000.0, set(), set()
        processes = DistributedConfig(stalled_after=patience)
        self.watchdogs = [Watchdog(folder, processes, i, 3, self.log, clock=lambda: self.now) for i in range(3)]
        for watchdog in self.watchdogs:
            watchdog.watch_data(lambda: 2, self.names)

    def names(self, step, process, ready):
        """Row i of step s of process p is 100 s + 10 p + i, with one sample."""
        index = [100 * step + 10 * process + i for i in range(4)]
        return [f"sample {i}" for i in (index if ready is None else index[ready : ready + 1])]

    def begin(self, what, step, slow=False, except_for=()):
        for i, watchdog in enumerate(self.watchdogs):
            if i not in except_for:
                watchdog.begin(what, step, slow)

    def wait(self, seconds):
        for _ in range(int(seconds)):
            self.now += 1
            if self.now % INTERVAL:
                continue
            for i, watchdog in enumerate(self.watchdogs):
                if i not in self.frozen:
                    if i not in self.unreachable:
                        watchdog.beat()
                    watchdog.check()


@pytest.fixture
def lines(monkeypatch):
    """The logged lines; END marks the end of a process."""
    lines = []
    monkeypatch.setattr(Cluster, "log", lines.append)
    monkeypatch.setattr("llava_jax.runtime.watchdog._end", lambda reason, log: lines.append(f"END {reason}"))
    return lines


def test_reading_straggler_is_named_with_its_row_then_all_end(tmp_path, lines):
    cluster = Cluster(tmp_path)
    cluster.begin(READING, 7)
    cluster.begin("computing", 7, except_for=(1,))
    cluster.wait(96)
    assert lines == []
    cluster.wait(9)
    (line,) = lines
    assert line.startswith("WARNING: no step for 1") and "process 1 of 3 is behind, reading rows (step 7)" in line
    assert line.endswith(", in step 7 with 'sample 712'. The run ends if this lasts as long again")
    cluster.wait(90)
    assert len(lines) == 1
    cluster.wait(15)
    assert {line[:17] for line in lines[1:]} == {"END process 1 of ", "END process 2 of "}, (
        "not yet process 0, which hosts the service"
    )
    assert all("process 1 of 3 is behind, reading rows" in line and "'sample 712'" in line for line in lines[1:])
    cluster.wait(15)
    assert any(line.startswith("END process 0 of 3: no step for 2") for line in lines)


def test_silent_process_is_named_with_its_first_missing_step(tmp_path, lines):
    cluster = Cluster(tmp_path)
    cluster.begin("computing", 5)
    cluster.wait(3)
    cluster.frozen = {2}  # its file stays at step 5, but it took part in 6 and 7
    for watchdog in cluster.watchdogs[:2]:
        watchdog.record_step(7)
    cluster.begin("computing", 9, except_for=(2,))
    cluster.wait(24)
    (line,) = lines  # at a quarter of --lost_after=60, by process 0: JAX may end the run before --stalled_after
    samples = ", ".join(f"'sample {820 + i}'" for i in range(4))
    assert "process 2 of 3 has written no heartbeat for " in line and line.endswith(f", in step 8 with {samples}")
    cluster.wait(80)
    assert len(lines) == 2 and lines[1].startswith("WARNING: no step for 10") and samples in lines[1]
    cluster.wait(125)
    assert {line[:13] for line in lines[2:]} == {"END process 0", "END process 1"} and samples in lines[2]


def test_slow_activity_may_last_ten_times_as_long(tmp_path, lines):
    cluster = Cluster(tmp_path)
    cluster.begin("compiling", 1, slow=True)
    cluster.begin("computing", 1, except_for=(0,))  # its program was cached
    cluster.wait(SLOW_FACTOR * 100 - 6)
    assert lines == []
    cluster.wait(9)
    assert len(lines) == 1 and "process 0 of 3 is behind, compiling (step 1)" in lines[0]


def test_next_process_warns_if_process_0_is_silent(tmp_path, lines):
    cluster = Cluster(tmp_path)
    cluster.begin("computing", 5)
    cluster.wait(3)
    cluster.frozen = {0}
    cluster.wait(105)
    assert len(lines) == 1 and lines[0].startswith("WARNING") and "process 0 of 3 has written no heartbeat" in lines[0]


def test_all_processes_end_with_the_same_reason(tmp_path, lines):
    cluster = Cluster(tmp_path)
    cluster.begin(READING, 7, except_for=(0,))
    cluster.watchdogs[0].begin("computing", 6)
    cluster.wait(60)
    cluster.begin("computing", 7, except_for=(0,))  # a long step
    cluster.wait(138)
    (line,) = lines
    assert line.startswith("WARNING: no step for") and "process 0 of 3 is behind, computing" in line
    cluster.wait(24)
    ended = [line for line in lines if line.startswith("END")]
    first = {line[:13]: i for i, line in reversed(list(enumerate(ended)))}
    assert len(first) == 3 and first["END process 0"] == max(first.values()), "process 0 hosts JAX's service"
    assert len({line[line.index("no step") :] for line in ended}) == 1


def test_heartbeats_of_an_earlier_run_are_ignored(tmp_path, lines):
    earlier = Cluster(tmp_path)
    earlier.watchdogs[1].record_end("no step for 600 s: whatever")
    watchdog = Watchdog(tmp_path, DistributedConfig(stalled_after=100), 0, 3, print, clock=lambda: earlier.now)
    watchdog.begin("computing", 5)
    for _ in range(36):
        earlier.now += 3
        watchdog.beat()
        watchdog.check()
    assert not any(line.startswith("END") for line in lines)
    assert all("process 1 of 3 has written no heartbeat" in line and "last seen starting" in line for line in lines)


def test_no_process_is_blamed_if_all_are_equal(tmp_path, lines):
    cluster = Cluster(tmp_path)
    cluster.begin("computing", 3)
    cluster.wait(105)
    assert len(lines) == 1 and "all processes are equally far" in lines[0] and "process 2 of 3" in lines[0]


def test_run_that_advances_is_never_warned_of(tmp_path, lines):
    cluster = Cluster(tmp_path)
    (tmp_path / "alive" / "1.json").write_text('{"count": 1, "ste')
    cluster.unreachable = {0, 1, 2}
    for step in range(1, 20):
        cluster.begin("computing", step)
        cluster.wait(96)
    assert lines == []


def test_suspended_process_blames_nobody_at_first(tmp_path, lines):
    cluster = Cluster(tmp_path)
    cluster.begin("computing", 4)
    cluster.wait(30)
    cluster.now += 3000  # e.g. a virtual machine is migrated
    cluster.wait(96)
    assert lines == []
    cluster.wait(9)
    assert len(lines) == 1


def test_unresponsive_workdir_is_named_instead_of_a_process(tmp_path, lines):
    cluster = Cluster(tmp_path)
    cluster.begin("computing", 4)
    cluster.wait(3)
    cluster.unreachable = {0, 1, 2}
    cluster.wait(102)
    assert lines and all(f"{tmp_path}/alive has not responded" in line for line in lines)


def test_explain_lost_names_the_lost_process_and_its_reason(tmp_path, lines, monkeypatch):
    cluster = Cluster(tmp_path)
    cluster.begin("computing", 4)
    cluster.wait(3)
    monkeypatch.setattr(time, "sleep", cluster.wait)
    assert cluster.watchdogs[0].explain_lost() == ""
    cluster.frozen = {1}
    reason = cluster.watchdogs[0].explain_lost()
    assert reason.startswith("process 1 of 3 has written no heartbeat for") and "'sample 410'" in reason
    cluster.watchdogs[2].record_end("no such file")
    cluster.frozen = {2}
    assert cluster.watchdogs[0].explain_lost().endswith("; ended: no such file")
    assert lines == []


def test_warning_names_up_to_16_samples(tmp_path, lines):
    cluster = Cluster(tmp_path)
    for watchdog in cluster.watchdogs:
        watchdog.watch_data(lambda: 0, lambda step, process, ready: [f"sample {i}" for i in range(18)])
    cluster.begin("computing", 4)
    cluster.wait(105)
    assert "with 'sample 0', " in lines[0] and "'sample 15' and 2 more" in lines[0]


def test_hanging_sample_names_do_not_delay_the_warning(tmp_path, lines):
    cluster = Cluster(tmp_path, patience=10)
    for watchdog in cluster.watchdogs:
        watchdog.watch_data(lambda: 0, lambda step, process, ready: time.sleep(1000))
    cluster.begin("computing", 4)
    cluster.wait(12)
    assert len(lines) == 1 and "process 2 of 3 is behind, computing (step 4)" in lines[0]


def test_watchdog_of_one_process_or_disabled_writes_nothing(tmp_path, lines):
    for count, patience in ((1, 100), (2, 0)):
        watchdog = Watchdog(tmp_path, DistributedConfig(stalled_after=patience), 0, count, print)
        watchdog.start()
        watchdog.begin("computing", 1)
        watchdog.record_end("done")
        assert watchdog.explain_lost() == ""
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="--stalled_after=-1 must be at least 1"):
        DistributedConfig(stalled_after=-1)


def test_unwritable_workdir_fails_at_once(tmp_path):
    (tmp_path / "alive").write_text("a file")
    with pytest.raises(DataError, match="cannot be written .* choose another --workdir"):
        Watchdog(tmp_path, DistributedConfig(), 0, 2, print)


def test_heartbeat_file_holds_step_activity_and_ready_rows(tmp_path):
    cluster = Cluster(tmp_path)
    cluster.begin(READING, 7)
    cluster.wait(3)
    status = json.loads((tmp_path / "alive" / "2.json").read_text())
    assert (status["step"], status["what"], status["ready"]) == (7, READING, 2)
