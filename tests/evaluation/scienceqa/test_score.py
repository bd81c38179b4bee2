import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_jax.data.sources.scienceqa import parse_problem
from llava_jax.errors import ConfigError, DataError
from llava_jax.evaluation.scienceqa.files import Answers, read_answers
from llava_jax.evaluation.scienceqa.score import (  # fmt: skip
    COLUMNS,
    baselines,
    compare_answers,
    differing_results,
    grade,
    marks_of,
    read_problems,
    shares,
    topic_shares,
)
from tests.fixtures.scienceqa import PLAIN, planted, write_folder


def counts(shares) -> dict[str, tuple[int, int]]:
    return {name: (share.correct, share.count) for name, share in shares.items() if share.count}


def test_each_column_counts_its_problems(tmp_path):
    problems = planted(
        tmp_path,
        {
            "1": {"subject": "natural science", "grade": "grade6", "topic": "physics"},
            "2": {"subject": "social science", "grade": "grade7", "topic": "civics", "hint": "Look."},
            "3": {"subject": "language science", "grade": "grade12", "topic": "verbs", "image": "image.png"},
            "4": {
                "subject": "language science",
                "grade": "grade1",
                "topic": "verbs",
                "hint": "x",
                "image": "image.png",
            },
        },
    )
    answers = Answers("x", {"1": "A", "2": "B", "3": "A", "4": "no"})
    marks = marks_of(grade(problems, answers))
    assert counts(shares(marks)) == {
        "NAT": (1, 1), "SOC": (0, 1), "LAN": (1, 2), "TXT": (0, 2), "IMG": (1, 2), "NO": (1, 1), "G1-6": (1, 2),
        "G7-12": (1, 2), "Avg": (2, 4),
    }  # fmt: skip
    assert counts(topic_shares(marks)) == {"physics": (1, 1), "civics": (0, 1), "verbs": (1, 2)}
    empty = shares(marks[:1])["SOC"]
    assert empty.percent is None and empty.interval is None


def test_181_real_problems_match_an_independent_count(real_data):
    folder, path = real_data / "scienceqa", real_data / "published" / "test_sqa_llava_13b_v0.json"
    marks = marks_of(grade(read_problems(folder, "test"), read_answers(path)))

    problems, outputs = json.loads((folder / "problems.json").read_text()), json.loads(path.read_text())["outputs"]
    right, every = Counter(), Counter()
    for pid in json.loads((folder / "pid_splits.json").read_text())["test"]:
        p = problems[pid]
        groups = ["Avg", "topic " + p["topic"], "G1-6" if int(p["grade"][5:]) <= 6 else "G7-12"]
        groups.append({"n": "NAT", "s": "SOC", "l": "LAN"}[p["subject"][0]])
        groups += ["TXT"] * bool(p["hint"]) + ["IMG"] * bool(p["image"]) + ["NO"] * (not p["hint"] and not p["image"])
        (letter,) = re.findall(r"The answer is (\w)\.", outputs[pid])
        every.update(groups)
        right.update(groups if letter == chr(ord("A") + p["answer"]) else [])

    ours = counts(shares(marks)) | {f"topic {name}": n for name, n in counts(topic_shares(marks)).items()}
    assert ours == {name: (right[name], every[name]) for name in every}
    assert ours["Avg"] == (156, 181) and set(COLUMNS) <= set(ours)


def test_released_indices_equal_parsed_ones_but_one(real_data):
    answers = read_answers(real_data / "published" / "test_sqa_llava_13b_v0.json")
    side, differing = differing_results(answers, read_problems(real_data / "scienceqa", "test"))
    assert side == 4241 and [pid for pid, _ in differing] == ["3247"]
    assert "the text says D, results has 1 (B)" in differing[0][1] and "not among the problems" in differing[0][1]


def test_differing_results_have_a_reason(tmp_path):
    problems = planted(tmp_path, {pid: {"choices": ["x", "y"], "answer": 0} for pid in "12345"})
    texts = {"1": "The answer is D.", "2": "The answer is D.", "3": "hm", "4": "A", "5": "B"}
    answers = Answers("x", texts, {"1": 1, "2": -1, "3": 0, "4": 1, "5": 1})
    side, differing = differing_results(answers, problems)
    assert side == 5 and [pid for pid, _ in differing] == ["1", "3", "4"]
    assert "says D, none of 2 choices, results has 1 (B); the original drew one at random" in differing[0][1]
    assert "says no letter, results has 0 (A); the original drew" in differing[1][1]
    assert differing[2][1] == "the text says A, results has 1 (B)"


TEXTS = {"1": "The answer is B.", "2": "hm", "3": "The answer is E.", "4": "The answer is B"}


def test_unparsed_and_missing_answers_are_wrong(tmp_path):
    problems = planted(tmp_path, {pid: {"answer": 1} for pid in "12345"})
    graded = grade(problems, Answers("x", TEXTS))
    assert [(g.letter, g.index, g.status, g.is_right) for g in graded] == [
        ("B", 1, "parsed", True), (None, -1, "unparsed", False), ("E", -1, "unparsed", False),
        (None, -1, "unparsed", False), (None, -1, "missing", False),
    ]  # fmt: skip
    assert [g.is_right for g in grade(problems, Answers("x", TEXTS), parser="lenient")] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_random_mode_samples_by_seed_and_ignores_missing(tmp_path):
    problems = planted(tmp_path, {str(i): {"choices": ["a", "b"], "answer": i % 2} for i in range(400)})
    answers = Answers("x", {str(i): "hm" for i in range(300)})

    def drawn(seed):
        graded = grade(problems, answers, unparsed="random", seed=seed)
        assert len(graded) == 300 and {g.status for g in graded} == {"unparsed"}
        return [g.index for g in graded]

    assert drawn(0) == drawn(0) != drawn(1) and set(drawn(0)) == {0, 1}
    assert 110 < sum(drawn(0)) < 190  # 150 +- 8.7 for equal probabilities


PIDS = [str(i) for i in range(12)]
SOME = st.sampled_from(["A", "B. x", "The answer is C.", "The answer is E.", "The answer is B", "hm", ""])


@settings(max_examples=50)
@given(
    texts=st.dictionaries(st.sampled_from(PIDS), SOME, min_size=1),
    order=st.permutations(PIDS),
    unparsed=st.sampled_from(["wrong", "random"]),
    data=st.data(),
)
def test_grades_do_not_depend_on_order(texts, order, unparsed, data):
    problems = {pid: parse_problem(pid, PLAIN | {"answer": int(pid) % 3}, "x") for pid in PIDS}
    turned = {pid: texts[pid] for pid in data.draw(st.permutations(sorted(texts)))}
    first = grade([problems[pid] for pid in PIDS], Answers("x", texts), unparsed=unparsed)
    second = grade([problems[pid] for pid in order], Answers("x", turned), unparsed=unparsed)
    assert {g.problem.pid: g for g in first} == {g.problem.pid: g for g in second}
    assert shares(marks_of(first)) == shares(marks_of(second))


def test_results_parser_uses_the_indices_of_the_file(tmp_path):
    problems = planted(tmp_path, {pid: {"answer": 1} for pid in "1234"})
    graded = grade(problems, Answers("x", {}, {"1": 1, "2": -1, "3": 7}), parser="results")
    assert [(g.index, g.status) for g in graded] == [(1, "parsed"), (-1, "unparsed"), (-1, "unparsed"), (-1, "missing")]
    with pytest.raises(ConfigError, match="has no texts; try --parser results"):
        grade(problems, Answers("x", {}, {"1": 1}))
    with pytest.raises(ConfigError, match="has no indices .*; try --parser strict"):
        grade(problems, Answers("x", {"1": "A"}), parser="results")


def test_compare_answers_counts_flips(tmp_path):
    problems = planted(tmp_path, {str(i): {} for i in range(20)})
    first = grade(problems, Answers("a", {str(i): "A" if i < 12 else "B" for i in range(20)}))
    second = grade(problems, Answers("b", {str(i): "A" if 9 <= i < 16 else "C" for i in range(18)}))
    compared = compare_answers(first, second)
    assert (compared.both, compared.only_first, compared.only_second, compared.neither) == (3, 9, 4, 4)
    assert compared.count == 20 and compared.missing == 2
    assert [a.problem.pid for a, _ in compared.flips] == [*map(str, range(9)), *map(str, range(12, 16))]
    assert compared.p == pytest.approx(2 * (1 + 13 + 78 + 286 + 715) / 2**13)


def test_baselines_without_a_model(tmp_path):
    two, four = ["a", "b"], ["a", "b", "c", "d"]
    rows = {"1": (two, 1), "2": (four, 1), "3": (four, 0), "4": (four, 1), "5": (two, 0)}
    problems = planted(tmp_path, {pid: {"choices": choices, "answer": right} for pid, (choices, right) in rows.items()})
    chance, letter, share = baselines(problems)
    assert chance == pytest.approx(100 * (0.5 + 0.25 + 0.25 + 0.25 + 0.5) / 5)
    assert (letter, share.correct, share.count) == ("B", 3, 5)
    assert baselines([p for p in problems if p.pid in "12 3 5"])[1] == "A", "the first of equally frequent letters"


@pytest.mark.parametrize("key", ["subject", "grade"])
def test_unknown_subject_or_grade_is_rejected(tmp_path, key):
    with pytest.raises(DataError, match=f"problem 7: key \"{key}\" is 'magic', not one of"):
        planted(tmp_path, {"7": {key: "magic"}})


def test_repeated_problem_counts_once(tmp_path):
    write_folder(tmp_path, {"1": {}})
    (tmp_path / "pid_splits.json").write_text('{"test": ["1", "1"]}')
    assert len(read_problems(tmp_path, "test")) == 1
