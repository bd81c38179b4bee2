"""Both ensembles on 200 planted problems with outcomes counted by hand."""

import pytest

from llava_jax.errors import DataError
from llava_jax.evaluation.scienceqa.ensemble import combine
from llava_jax.evaluation.scienceqa.files import Answers
from tests.fixtures.scienceqa import planted

# (number of problems, answers of ours, other and judge); three choices, A is right
BLOCKS = [
    (80, "A", "A", None),
    (30, "A", "B", "A"),
    (20, "A", "B", "B"),
    (25, "B", "A", "A"),
    (10, "B", "A", "I cannot say."),
    (15, "A", "Perhaps A.", None),  # not parsed
    (10, "B", "C", "A"),
    (10, "B", "B", None),
]
RIGHT = {"ours": 145, "other": 115, "complement": 130, "judge": 160, "upper bound": 180}  # of 200


def files(blocks) -> list[Answers]:
    """The answers of ours, other and judge."""
    rows = [block for block in blocks for _ in range(block[0])]
    texts = [{str(i): text for i, row in enumerate(rows) if (text := row[which])} for which in (1, 2, 3)]
    answers = [{pid: f"The answer is {t}." if len(t) == 1 else t for pid, t in by_id.items()} for by_id in texts]
    return [Answers(name, by_id) for name, by_id in zip(("ours", "other", "judge"), answers, strict=True)]


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("sqa"), {str(i): {} for i in range(200)})


def right(ensemble, name: str) -> int:
    return sum(is_right for _, is_right in ensemble.marks(name))


def test_every_ensemble_has_the_planted_counts(problems):
    joined = combine(problems, *files(BLOCKS), unparsed="wrong")
    assert {name: right(joined, name) for name in RIGHT} == RIGHT
    assert joined.silent == [str(i) for i in range(165, 180)] and joined.unread == []
    assert joined.differing == [str(i) for i in range(80, 190)]  # exactly the judge's problems
    assert joined.judged == [str(i) for i in [*range(80, 155), *range(180, 190)]]


def test_only_unknown_choices_are_sampled(problems):
    """Some of 15 unparsed answers are right by chance; where ours is used instead, counts stay exact."""
    joined, again, other = (combine(problems, *files(BLOCKS), seed=seed) for seed in (0, 0, 1))
    assert joined == again and joined.indices["other"] != other.indices["other"]
    for ensemble in (joined, other):
        assert {name: right(ensemble, name) for name in RIGHT if name != "other"} | {"other": 115} == RIGHT
        assert 115 < right(ensemble, "other") < 130
        assert ensemble.indices["other"][:165] == joined.indices["other"][:165]
        assert ensemble.differing == [str(i) for i in range(80, 190)]  # also for unparsed answers


def test_letter_without_a_choice_is_an_answer_of_unknown_index(problems):
    """As in the original, neither complement nor judge falls back to ours."""
    joined = combine(problems, *files([(100, "A", "E", None), (100, "A", "B", "E")]), unparsed="wrong")
    assert joined.silent == [] and right(joined, "complement") == 0 and right(joined, "judge") == 100
    drawn = combine(problems, *files([(200, "A", "E", "E")]))
    assert set(drawn.indices["complement"]) == set(drawn.indices["judge"]) == {0, 1, 2}


def test_only_the_answer_sentence_is_parsed(problems):
    joined = combine(problems, *(Answers(a.name, dict.fromkeys(a.texts, "A")) for a in files(BLOCKS)), unparsed="wrong")
    assert right(joined, "upper bound") == 0 and len(joined.silent) == len(joined.unread) == 200
    assert joined.differing == []


def test_without_judge_only_problems_answered_by_both_count(problems):
    ours, other, _ = files(BLOCKS)
    fewer = Answers("other", dict(list(other.texts.items())[:100]))
    joined = combine(problems, ours, fewer, unparsed="wrong")
    assert len(joined.problems) == 100 and right(joined, "complement") == 80 and "judge" not in joined.indices


def test_sampled_choices_raise_the_upper_bound_only_with_judge(problems):
    """As in the original's two scripts: an unparsed answer is sampled in one and falls back to ours in the other."""
    ours, other, judge = files([(200, "B", "Hm.", None)])
    assert right(combine(problems, ours, other), "upper bound") == 0
    assert 40 < right(combine(problems, ours, other, judge), "upper bound") < 95  # 67 +- 7


def test_judge_requires_both_files_to_be_complete(problems):
    ours, other, judge = files(BLOCKS)
    fewer = Answers("other.json", {pid: text for pid, text in other.texts.items() if pid != "7"})
    with pytest.raises(DataError, match="other.json: 1 of 200 problems have no answer, the first: 7"):
        combine(problems, ours, fewer, judge)
    with pytest.raises(DataError, match="no problem of this split is answered by both"):
        combine(problems, ours, Answers("other.json", {"999": "A"}))


def test_judge_answers_to_agreeing_problems_count(problems):
    """As in the original, a judge's answer counts wherever there is one."""
    ours, other, _ = files(BLOCKS)
    joined = combine(problems, ours, other, Answers("judge", dict.fromkeys(ours.texts, "The answer is A.")))
    assert right(joined, "judge") == 200 and len(joined.judged) == 200
