"""The prompts of a chat model on ScienceQA."""

import dataclasses

import pytest

from llava_jax.errors import ConfigError
from llava_jax.evaluation.scienceqa.llm_prompts import JUDGE_INSTRUCTION, draw_shots, judge_messages, question_messages
from llava_jax.evaluation.scienceqa.parse import stated_letter
from llava_jax.evaluation.scienceqa.score import read_problems
from tests.fixtures.scienceqa import planted


@pytest.fixture
def problem(tmp_path):
    return planted(tmp_path, {"1": {"hint": "A hint.", "lecture": "L.", "solution": "S.", "image": "image.png"}})[0]


def test_question_follows_its_shots(problem):
    shot = dataclasses.replace(problem, question="What?", hint="", answer=1, image=None)
    system, *turns = question_messages(problem, [shot, dataclasses.replace(shot, lecture="", solution="")])
    assert system["role"] == "system" and "\n" not in system["content"]
    options = "Options: (A) one (B) two (C) three"
    assert [tuple(turn.values()) for turn in turns] == [
        ("user", f"Can you explain What?\nContext: N/A\n{options}?"),
        ("assistant", "The answer is B. BECAUSE: L. S."),
        ("user", f"Can you explain What?\nContext: N/A\n{options}?"),
        ("assistant", "The answer is B."),
        ("user", f"Can you explain Which?\nContext: A hint.\n{options}?"),  # without <image>
    ]


def test_shots_are_sampled_from_explained_problems_without_image(tmp_path):
    changes = {str(i): {"split": "train", "solution": "S."} for i in range(40)}
    changes |= {"image": {"split": "train", "solution": "S.", "image": "image.png"}, "bare": {"split": "train"}}
    planted(tmp_path, changes | {"test": {}})
    train = read_problems(tmp_path, "train")
    drawn = [[shot.pid for shot in draw_shots(train, 40, seed)] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2] and sorted(drawn[0], key=int) == [str(i) for i in range(40)]
    assert [shot.pid for shot in draw_shots(train, 2, 3)] == drawn[0][:2] or len(draw_shots(train, 2, 3)) == 2
    with pytest.raises(ConfigError, match="--shots 41: only 40 train problems have an explanation"):
        draw_shots(train, 41, 3)


def test_judge_prompt_contains_problem_and_both_answers(problem):
    system, user = judge_messages(problem, "Ours. The answer is A.\n", " ")
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].startswith("Question: Which?\nContext: A hint.\nOptions: (A) one (B) two (C) three\n\n")
    first, second = "[Assistant 1]\nOurs. The answer is A.\n[End of", "[Assistant 2]\n(no answer)\n[End of"
    assert user["content"].index(first) < user["content"].index(second) < user["content"].index(JUDGE_INSTRUCTION)
    assert "only Assistant 1 has seen" in user["content"]
    without = judge_messages(dataclasses.replace(problem, image=None), "a", "b")[1]["content"]
    assert "image" not in without and without.endswith(JUDGE_INSTRUCTION)


def test_requested_sentence_is_the_parsed_one():
    assert JUDGE_INSTRUCTION.count('"The answer is X."') == 1 and stated_letter("So. The answer is X.") == "X"
