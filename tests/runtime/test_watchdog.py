"""Who holds up whom, on a clock of its own. test_verdict.py has the pure part, test_processes.py real processes."""

import json
import time

import pytest

from llava_jax.errors import ConfigError, DataError
from llava_jax.runtime import watchdog
from llava_jax.runtime.distributed import DistributedConfig
from llava_jax.runtime.heartbeat import READING
from llava_jax.runtime.verdict import SLOW
from llava_jax.runtime.watchdog import Watchdog

EVERY = 3  # seconds, with the default of --lost_after


class Cluster:
    """Three processes, one second a tick; those that are not in `frozen` live."""

    log = print

    def __init__(self, folder, patience=100):
        self.now, self.frozen, self.unreachable = 1000.0, set(), set()
        processes = DistributedConfig(stalled_after=patience)
        self.all = [Watchdog(folder, processes, i, 3, self.log, clock=lambda: self.now) for i in range(3)]
        for one in self.all:
            one.watch_data(lambda: 2, self.names)

    def names(self, step, process, ready):
        """Row i of step s of process p is 100 s + 10 p + i, with one sample."""
        index = [100 * step + 10 * process + i for i in range(4)]
        return [f"sample {i}" for i in (index if ready is None else index[ready : ready + 1])]

    def at(self, what, step, slow=False, but=()):
        for i, one in enumerate(self.all):
            if i not in but:
                one.begin(what, step, slow)

    def wait(self, seconds):
        for _ in range(int(seconds)):
            self.now += 1
            if self.now % EVERY:
                continue
            for i, one in enumerate(self.all):
                if i not in self.frozen:
                    if i not in self.unreachable:
                        one.beat()
                    one.check()


@pytest.fixture
def said(monkeypatch):
    """Lines, and of whom they are said to have ended."""
    lines = []
    monkeypatch.setattr(Cluster, "log", lines.append)
    monkeypatch.setattr(watchdog, "_end", lambda reason, log: lines.append(f"END {reason}"))
    return lines


def test_the_one_that_reads_on_is_named_with_the_row_it_waits_for_and_all_end_in_as_long_again(tmp_path, said):
    cluster = Cluster(tmp_path)
    cluster.at(READING, 7)
    cluster.at("computing", 7, but=(1,))
    cluster.wait(96)
    assert said == []
    cluster.wait(9)
    (line,) = said
    assert line.startswith("WARNING: no step for 1") and "process 1 of 3 is behind, reading rows (step 7)" in line
    assert line.endswith(", in step 7 with 'sample 712'. In as long again the run ends")
    cluster.wait(90)
    assert len(said) == 1
    cluster.wait(15)
    assert {line[:17] for line in said[1:]} == {"END process 1 of ", "END process 2 of "}, (
        "not process 0, their service"
    )
    assert all("process 1 of 3 is behind, reading rows" in line and "'sample 712'" in line for line in said[1:])
    cluster.wait(15)
    assert any(line.startswith("END process 0 of 3: no step for 2") for line in said)


def test_a_silent_one_is_named_with_the_first_step_in_which_it_was_missing(tmp_path, said):
    cluster = Cluster(tmp_path)
    cluster.at("computing", 5)
    cluster.wait(3)
    cluster.frozen = {2}  # its file says step 5 for ever; it took part in 6 and 7
    for one in cluster.all[:2]:
        one.step_is_read(7)
    cluster.at("computing", 9, but=(2,))
    cluster.wait(24)
    (line,) = said  # at a quarter of --lost_after=60, by process 0: JAX may end the run before --stalled_after
    samples = ", ".join(f"'sample {820 + i}'" for i in range(4))
    assert "process 2 of 3 has given no sign of life for " in line and line.endswith(f", in step 8 with {samples}")
    cluster.wait(80)
    assert len(said) == 2 and said[1].startswith("WARNING: no step for 10") and samples in said[1]
    cluster.wait(125)
    assert {line[:13] for line in said[2:]} == {"END process 0", "END process 1"} and samples in said[2]


def test_what_is_no_step_may_last_longer_also_for_those_that_wait_for_it(tmp_path, said):
    cluster = Cluster(tmp_path)
    cluster.at("compiling", 1, slow=True)
    cluster.at("computing", 1, but=(0,))  # it found the program on disk
    cluster.wait(SLOW * 100 - 6)
    assert said == []
    cluster.wait(9)
    assert len(said) == 1 and "process 0 of 3 is behind, compiling (step 1)" in said[0]


def test_where_process_0_is_silent_the_next_one_speaks(tmp_path, said):
    cluster = Cluster(tmp_path)
    cluster.at("computing", 5)
    cluster.wait(3)
    cluster.frozen = {0}
    cluster.wait(105)
    assert len(said) == 1 and said[0].startswith("WARNING") and "process 0 of 3 has given no sign of life" in said[0]


def test_what_one_decides_the_others_follow_also_where_they_began_to_wait_later(tmp_path, said):
    cluster = Cluster(tmp_path)
    cluster.at(READING, 7, but=(0,))
    cluster.all[0].begin("computing", 6)
    cluster.wait(60)
    cluster.at("computing", 7, but=(0,))  # long for a step
    cluster.wait(138)
    assert [line[:20] for line in said] == ["WARNING: no step for"] and "process 0 of 3 is behind, computing" in said[0]
    cluster.wait(24)
    ended = [line for line in said if line.startswith("END")]
    first = {line[:13]: i for i, line in reversed(list(enumerate(ended)))}
    assert len(first) == 3 and first["END process 0"] == max(first.values()), "with JAX's service"
    assert len({line[line.index("no step") :] for line in ended}) == 1


def test_files_of_an_earlier_run_say_nothing_of_this_one(tmp_path, said):
    earlier = Cluster(tmp_path)
    earlier.all[1].leave("no step for 600 s: whatever")
    one = Watchdog(tmp_path, DistributedConfig(stalled_after=100), 0, 3, print, clock=lambda: earlier.now)
    one.begin("computing", 5)
    for _ in range(36):
        earlier.now += 3
        one.beat()
        one.check()
    assert not any(line.startswith("END") for line in said)
    assert all("process 1 of 3 has given no sign of life" in line and "last seen starting" in line for line in said)


def test_where_all_do_the_same_no_process_is_blamed(tmp_path, said):
    cluster = Cluster(tmp_path)
    cluster.at("computing", 3)
    cluster.wait(105)
    assert len(said) == 1 and "all do the same, so it is no process" in said[0] and "process 2 of 3" in said[0]


def test_a_run_that_goes_on_is_left_alone_whatever_the_files_say(tmp_path, said):
    cluster = Cluster(tmp_path)
    (tmp_path / "alive" / "1.json").write_text('{"count": 1, "ste')
    cluster.unreachable = {0, 1, 2}
    for step in range(1, 20):
        cluster.at("computing", step)
        cluster.wait(96)
    assert said == []


def test_one_that_was_stopped_itself_and_goes_on_blames_nobody(tmp_path, said):
    cluster = Cluster(tmp_path)
    cluster.at("computing", 4)
    cluster.wait(30)
    cluster.now += 3000  # a virtual machine that is moved
    cluster.wait(96)
    assert said == []
    cluster.wait(9)
    assert len(said) == 1


def test_a_workdir_that_does_not_answer_is_named_and_no_process(tmp_path, said):
    cluster = Cluster(tmp_path)
    cluster.at("computing", 4)
    cluster.wait(3)
    cluster.unreachable = {0, 1, 2}
    cluster.wait(102)
    assert said and all(f"{tmp_path}/alive has not answered" in line for line in said)


def test_behind_a_failed_computation_the_lost_one_is_named_at_once_or_with_its_last_words(tmp_path, said, monkeypatch):
    cluster = Cluster(tmp_path)
    cluster.at("computing", 4)
    cluster.wait(3)
    monkeypatch.setattr(time, "sleep", cluster.wait)
    assert cluster.all[0].explain_lost() == ""
    cluster.frozen = {1}
    found = cluster.all[0].explain_lost()
    assert found.startswith("process 1 of 3 has given no sign of life for") and "'sample 410'" in found
    cluster.all[2].leave("no such file")
    cluster.frozen = {2}
    assert cluster.all[0].explain_lost().endswith("; ended: no such file")
    assert said == []


def test_many_names_are_cut_short(tmp_path, said):
    cluster = Cluster(tmp_path)
    for one in cluster.all:
        one.watch_data(lambda: 0, lambda step, process, ready: [f"sample {i}" for i in range(18)])
    cluster.at("computing", 4)
    cluster.wait(105)
    assert "with 'sample 0', " in said[0] and "'sample 15' and 2 more" in said[0]


def test_names_that_cannot_be_read_do_not_keep_the_warning_back(tmp_path, said):
    cluster = Cluster(tmp_path, patience=10)
    for one in cluster.all:
        one.watch_data(lambda: 0, lambda step, process, ready: time.sleep(1000))
    cluster.at("computing", 4)
    cluster.wait(12)
    assert len(said) == 1 and "process 2 of 3 is behind, computing (step 4)" in said[0]


def test_alone_or_turned_off_it_writes_nothing(tmp_path, said):
    for count, patience in ((1, 100), (2, 0)):
        one = Watchdog(tmp_path, DistributedConfig(stalled_after=patience), 0, count, print)
        one.start()
        one.begin("computing", 1)
        one.leave("done")
        assert one.explain_lost() == ""
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="--stalled_after=-1 must be at least 1"):
        DistributedConfig(stalled_after=-1)


def test_a_workdir_that_cannot_be_written_is_an_error_at_once(tmp_path):
    (tmp_path / "alive").write_text("a file")
    with pytest.raises(DataError, match="cannot be written .* choose another --workdir"):
        Watchdog(tmp_path, DistributedConfig(), 0, 2, print)


def test_the_file_says_what_a_supervisor_may_want_to_know(tmp_path):
    cluster = Cluster(tmp_path)
    cluster.at(READING, 7)
    cluster.wait(3)
    found = json.loads((tmp_path / "alive" / "2.json").read_text())
    assert (found["step"], found["what"], found["ready"]) == (7, READING, 2)
