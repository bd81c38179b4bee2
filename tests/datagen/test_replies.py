"""The grammar of replies: what is accepted, and what is rejected with which reason."""

import pytest

from llava_jax.datagen.prompts import KINDS, OUR_SHOTS, read_prompts
from llava_jax.datagen.replies import REASONS, parse_reply

GOOD = "Question:\nWhat is it?\n===\nAnswer:\nA bus.\n===\nQuestion:\nWhy?\n===\nAnswer:\nOne.\n\n1. Two."
PAIRS = [("What is it?", "A bus."), ("Why?", "One.\n\n1. Two.")]
BARE = GOOD.replace("===\n", "")
CHINESE = [("这是什么？", "一辆公共汽车。")]
CONVERSATIONS = {  # name: (reply, pairs or reason)
    "published form": (GOOD, PAIRS),
    "closing separator": (f"{GOOD}\n===", PAIRS),
    "closing separator and blanks": (f"{GOOD}\n\n===\n  \n", PAIRS),
    "leading separator": (f"===\n{GOOD}", PAIRS),
    "longer separators with spaces": (GOOD.replace("===", " =====  "), PAIRS),
    "two separators": (GOOD.replace("===", "===\n\n==="), PAIRS),
    "no separators": (BARE, PAIRS),
    "a missing separator": (GOOD.replace("===\n", "", 1), PAIRS),
    "text beside labels": (GOOD.replace(":\n", ": "), PAIRS),
    "blank lines everywhere": (GOOD.replace("\n===\n", "\n\n===\n\n"), PAIRS),
    "Windows line ends": (GOOD.replace("\n", "\r\n"), PAIRS),
    "numbered labels": (GOOD.replace("Question:", "Question 7:").replace("Answer:", "Answer 7:"), PAIRS),
    "bold labels": (GOOD.replace("Question:", "**Question:**").replace("Answer:", "**Answer**:"), PAIRS),
    "bold questions": (GOOD.replace("Question:\nWhat is it?", "**Question: What is it?**"), PAIRS),
    "headings": (GOOD.replace("Question:", "### Question 1:"), PAIRS),
    "lower case": (GOOD.replace("Question:", "question:").replace("Answer:", "ANSWER:"), PAIRS),
    "full-width colon": (GOOD.replace("Question:", "Question："), PAIRS),
    "code fence": (f"```\n{GOOD}\n```", PAIRS),
    "code fence with a language": (f"```text\n{GOOD}\n```\n", PAIRS),
    "code in an answer": (
        "Question:\nHow?\n===\nAnswer:\n```\nx = 1\n```\nSo.",
        [("How?", "```\nx = 1\n```\nSo.")],
    ),
    "introduced": (f"Here is the conversation:\n\n{GOOD}", PAIRS),
    "another language": (
        f"Question:\n{CHINESE[0][0]}\n===\nAnswer:\n{CHINESE[0][1]}",
        CHINESE,
    ),
    "a separator within a line": (
        "Question:\nIs a === b?\n===\nAnswer:\nYes, a === b.",
        [("Is a === b?", "Yes, a === b.")],
    ),
    "the word answer in an answer": (
        "Question:\nWhy?\n===\nAnswer:\nThe answer: it rains.\nAnswers: many.",
        [("Why?", "The answer: it rains.\nAnswers: many.")],
    ),
    "empty": ("", "empty reply"),
    "blank": (" \n\t\n", "empty reply"),
    "refusal": ("I'm sorry, but I can't help with that.", "refused"),
    "refusal with a typographic apostrophe": ("I’m sorry, I cannot see images.", "refused"),
    "as an AI": ("As an AI language model, I do not see images.", "refused"),
    "meta reply": ("It seems that your message is empty. What can I do?", "no question"),
    "prose": ("The image shows a bus on a street.", "no question"),
    "labels in another language": ("问题：\n这是什么？\n===\n回答：\n公共汽车。", "no question"),
    "JSON": ('[{"question": "What?", "answer": "A bus."}]', "no question"),
    "Q and A": ("Q: What is it?\nA: A bus.", "no question"),
    "two lines before the labels": (f"Sure!\nHere it is:\n{GOOD}", "text outside of questions and answers"),
    "a remark after the end": (f"{GOOD}\n===\nLet me know if you need more!", "text outside of questions and answers"),
    "answer first": ("Answer:\nA bus.\n===\nQuestion:\nWhat?\n===\nAnswer:\nA car.", "begins with an answer"),
    "question last": (f"{GOOD}\n===\nQuestion:\nWhat else?", "ends with a question"),
    "two questions": ("Question:\nWhat?\n===\nQuestion:\nWho?\n===\nAnswer:\nA man.", "two questions in a row"),
    "two answers": ("Question:\nWhat?\n===\nAnswer:\nA bus.\n===\nAnswer:\nA car.", "two answers in a row"),
    "empty question": ("Question:\n\n===\nAnswer:\nA bus.", "empty question"),
    "empty answer": ("Question:\nWhat?\n===\nAnswer:\n", "empty answer"),
    "image marker": (GOOD.replace("a bus", "<image>").replace("What", "<image> What"), "contains <image>"),
    "lone surrogate": (GOOD.replace("bus", "\ud83d"), "contains a lone surrogate"),
}
CUT = {  # (kind, reply that was cut): pairs or reason
    ("conversation", GOOD): PAIRS[:1],
    ("conversation", GOOD[: GOOD.index("Why") + 2]): PAIRS[:1],
    ("conversation", GOOD[: GOOD.index("bus")]): "cut at the token limit",
    ("conversation", "Question:\nWh"): "cut at the token limit",
    ("conversation", "The image shows a"): "no question",
    ("reasoning", GOOD[: GOOD.index("bus")]): "cut at the token limit",
    ("detail", "The image shows a"): "cut at the token limit",
}
DESCRIPTIONS = {
    "The image shows a bus.\n\n1. It is red.": [("", "The image shows a bus.\n\n1. It is red.")],
    "Answer:\nA bus.": [("", "A bus.")],
    "```\nA bus.\n```": [("", "A bus.")],
    "Answer:": "empty answer",
    GOOD: "questions in a description",
    "A bus.\n===\nA car.": "questions in a description",
    "Sorry, but I cannot describe this.": "refused",
    " ": "empty reply",
}


def check(kind, text, finish, result):
    pairs, reason = parse_reply(kind, text, finish)
    assert (reason or pairs) == result and bool(pairs) != bool(reason)
    assert reason is None or reason in REASONS


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_odd_conversation_is_decided_as_documented(name):
    check("conversation", CONVERSATIONS[name][0], "stop", CONVERSATIONS[name][1])


@pytest.mark.parametrize("kind, text", CUT)
def test_cut_reply_keeps_only_complete_pairs(kind, text):
    check(kind, text, "length", CUT[kind, text])


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_description_is_the_whole_reply(text):
    check("detail", text, "stop", DESCRIPTIONS[text])


def test_reasoning_uses_the_first_pair():
    check("reasoning", GOOD, "stop", PAIRS[:1])


def test_every_reason_is_reached():
    results = [result for _, result in CONVERSATIONS.values()] + [*CUT.values(), *DESCRIPTIONS.values()]
    assert {result for result in results if isinstance(result, str)} == set(REASONS)


def test_our_own_shots_follow_the_grammar():
    """They are what a teacher imitates."""
    prompts = read_prompts()
    assert [len(prompts[kind].shots) for kind in KINDS] == [2, 3, 3]
    for kind in KINDS:
        for _, reply in prompts[kind].shots:
            pairs, reason = parse_reply(kind, reply)
            assert reason is None and len(pairs) == {"conversation": 4}.get(kind, 1)
    for folder in KINDS.values():
        for file in (OUR_SHOTS / folder).iterdir():
            assert not file.read_bytes().endswith(b"\n"), file
