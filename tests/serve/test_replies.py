"""Completion objects built of tokens: white space at the ends, log-probabilities, choices that take turns."""

import pytest

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.inference.engine import GeneratedPiece
from llava_jax.serve.replies import ChatReply
from llava_jax.serve.scheduler import Token

TOKENIZER = open_tokenizer("tiny")


def token(text: str, finish: str | None = None, choice: int = 0, id: int = 300, logprob: float = -1.0) -> Token:
    return Token(choice, GeneratedPiece(id, text, finish), logprob, ((id, logprob), (301, -2.0)), cached_tokens=5)


def reply(n: int = 1, top_logprobs: int | None = None) -> ChatReply:
    return ChatReply("x", "llava", TOKENIZER, n, top_logprobs)


@pytest.mark.parametrize(
    "pieces, expected",
    [
        (["  a ", " ", "b  "], ["a", "", "  b"]),
        ([" ", "\n a", "", " \n"], ["", "a", "", ""]),
        (["a", " "], ["a", ""]),
        ([" ", " "], ["", ""]),
    ],
)
def test_white_space_at_the_ends_is_dropped_and_inside_kept(pieces, expected):
    tokens = [token(text, "stop" if i == len(pieces) - 1 else None) for i, text in enumerate(pieces)]
    streamed, whole = reply(), reply()
    assert [whole.add(each)[0] for each in tokens] == expected
    chunks = [chunk for each in tokens for chunk in streamed.chunks(each)]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    message = whole.completion(7)["choices"][0]["message"]["content"]
    assert "".join(texts) == message == "".join(expected)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop" and whole.is_complete


def test_choices_take_turns_and_usage_counts_all():
    both = reply(n=2)
    for each in (token("a"), token("x", choice=1), token("b", "length"), token("y", "stop", choice=1)):
        assert not both.is_complete
        both.add(each)
    done = both.completion(7)
    assert [choice["message"]["content"] for choice in done["choices"]] == ["ab", "xy"]
    assert [choice["finish_reason"] for choice in done["choices"]] == ["length", "stop"]
    assert done["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 5},
    }  # fmt: skip


def test_stop_token_has_no_logprob_and_infinity_is_a_number():
    with_logprobs = reply(top_logprobs=1)
    with_logprobs.add(token("a", logprob=float("-inf")))
    with_logprobs.add(token("", "stop", id=TOKENIZER.eos_id))
    (entry,) = with_logprobs.completion(1)["choices"][0]["logprobs"]["content"]
    assert entry["logprob"] == -9999.0 and len(entry["top_logprobs"]) == 1
    assert bytes(entry["bytes"]).decode() == entry["token"] == TOKENIZER.decode([300])
