"""scienceqa/task.py: prompts, parsers and metrics of ScienceQA."""

from llava_jax.data.sources.scienceqa import ScienceQA
from llava_jax.evaluation.metrics import score_answers
from llava_jax.evaluation.questions import PredictOptions, TaskQuestion, build_questions
from llava_jax.evaluation.scienceqa.files import Answers
from llava_jax.evaluation.scienceqa.score import grade, marks_of, read_problems, shares, topic_shares
from llava_jax.evaluation.scienceqa.task import ScienceQATask
from tests.fixtures.scienceqa import write_folder


def questions(source: ScienceQA, **options) -> dict[str, TaskQuestion]:
    built, _ = build_questions(ScienceQATask(source, **options), PredictOptions(missing_images="text"))
    return {question.pid: question for question in built}


def test_image_place_and_prompt_format_of_the_prompts(folder):
    source = ScienceQA(folder, "test")
    front = questions(source)
    text = "Which is 1 , or so?\nContext: Look.\nOptions: (A) one (B) two (C) three"
    assert front["1"] == TaskQuestion(1, "1", f"<image>\n{text}", "test/1/image.png")
    assert front["0"] == TaskQuestion(0, "0", "Which is 0?\nContext: N/A\nOptions: (A) one (B) two (C) three", None)
    single = questions(source, image_place="back", single_prediction=True)["1"].prompt
    assert single == f"{text}\nAnswer with the option's letter from the given choices directly.\n<image>"
    zero_shot = questions(ScienceQA(folder, "test", None, "CQM-A_v1.5"))
    assert zero_shot["1"].prompt == "<image>\nContext: Look. \nWhich is 1 , or so?\nA. one\nB. two\nC. three"
    assert zero_shot["0"].prompt == "Which is 0?\nA. one\nB. two\nC. three"


def test_image_marker_in_a_question_is_removed(tmp_path):
    source = ScienceQA(write_folder(tmp_path, {"1": {"question": "Is <image> a tag?"}}), "test")
    assert questions(source)["1"].prompt.startswith("Is  a tag?\n")


def test_task_metrics_equal_the_score_verb(tmp_path):
    write_folder(tmp_path, {str(i): {"answer": i % 3, "topic": f"topic {i % 2}"} for i in range(7)})
    texts = {"0": "The answer is A.", "1": "B", "2": "The answer is E.", "3": "I do not know", "4": "(b)", "9": "A"}
    problems = read_problems(tmp_path, "test")
    for parser, unparsed in (("strict", ["2", "3", "4"]), ("lenient", ["2", "3"])):
        scores = score_answers(ScienceQATask(ScienceQA(tmp_path, "test"), parser=parser), texts)
        marks = marks_of(grade(problems, Answers("a", texts), parser))
        assert scores.metrics == shares(marks) | topic_shares(marks)
        assert (scores.missing, scores.unparsed) == (["5", "6"], unparsed)
