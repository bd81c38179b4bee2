"""The ids of given answers, so that a further turn continues with them: an answer's text may have other tokens."""

import hashlib
from collections import OrderedDict

import numpy as np

from llava_jax.text.tokenizer import Tokenizer

MOST = 10_000  # answers


class AnswerMemory:
    """Finds the ids of an answer by the ids before it and its text. Keeps the most recently used MOST answers."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._answers: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def add(self, prompt: np.ndarray, ids: list[int]) -> None:
        """Keeps the answer `ids` to `prompt` (int32[n], images expanded), if a stop token ends it.

        The text is what `chat` shows: decoded without the stop token, and without white space around it.
        """
        key = _name(prompt, self.tokenizer.decode(ids[:-1]))
        self._answers[key] = np.array(ids, np.int32)
        self._answers.move_to_end(key)
        if len(self._answers) > MOST:
            self._answers.popitem(last=False)

    def restore(self, ids: np.ndarray, mask: np.ndarray, answers: list[str]) -> np.ndarray:
        """Replaces the ids of known answers in a conversation by those that the model chose.

        ids int32[L] and mask bool[L], True in the answers, stop tokens included, as `encode.tokenize` marks them;
        answers: their texts, in order. Returns int32[M]. Answers that are not known, or were cut off, stay.
        """
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
        spans = list(zip(edges[::2], edges[1::2], strict=True))
        if len(spans) != len(answers):  # a template that marks more than the answers
            return ids
        parts, end = [], 0
        for (start, stop), text in zip(spans, answers, strict=True):
            parts.append(ids[end:start])
            own, known = ids[start:stop], self._answers.get(_name(np.concatenate(parts), text))
            last = np.flatnonzero(own == known[-1]) if known is not None else ()
            parts.append(np.concatenate([known[:-1], own[last[-1] :]]) if len(last) else own)
            end = stop
        return np.concatenate([*parts, ids[end:]])


def _name(prompt: np.ndarray, text: str) -> bytes:
    return hashlib.sha256(prompt.astype(np.int32).tobytes() + text.strip().encode(errors="surrogatepass")).digest()
