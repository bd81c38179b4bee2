"""Builds OpenAI's chat completion objects of the tokens of a job: one whole, or the chunks of a stream."""

import time
from typing import Any

from llava_jax.serve.scheduler import Token
from llava_jax.text.detokenize import UNREADABLE
from llava_jax.text.tokenizer import Tokenizer


class ChatReply:
    """The answers to one request, as far as they are generated."""

    def __init__(self, request_id: str, model: str, tokenizer: Tokenizer, n: int, top_logprobs: int | None):
        """top_logprobs: likeliest tokens that are listed for each token; None: no log-probabilities."""
        self.id, self.model, self.created = f"chatcmpl-{request_id}", model, int(time.time())
        self.tokenizer, self.top_logprobs = tokenizer, top_logprobs
        self.choices = [_ChoiceText() for _ in range(n)]
        self.tokens = self.cached_tokens = 0

    @property
    def is_complete(self) -> bool:
        return all(choice.finish for choice in self.choices)

    def add(self, token: Token) -> tuple[str, list[dict] | None]:
        """Adds a token -> (new text of its choice, its log-probabilities or None)."""
        choice = self.choices[token.choice]
        self.tokens += 1
        self.cached_tokens = token.cached_tokens if token.choice == 0 else self.cached_tokens
        entries = None
        if self.top_logprobs is not None:
            is_stop_token = token.piece.finish == "stop" and token.piece.id in self.tokenizer.special.values()
            entries = [] if is_stop_token else [self._logprob(token)]
            choice.logprobs += entries
        choice.finish = token.piece.finish
        return choice.push(token.piece.text), entries

    def completion(self, prompt_tokens: int) -> dict[str, Any]:
        """The object `chat.completion`."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None if self.top_logprobs is None else {"content": choice.logprobs},
                "finish_reason": choice.finish,
            }
            for i, choice in enumerate(self.choices)
        ]
        return self._object("chat.completion", choices) | {"usage": self._usage(prompt_tokens)}

    def first_chunk(self, choice: int) -> dict[str, Any]:
        """The one that names the role."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None, None)

    def chunks(self, token: Token) -> list[dict[str, Any]]:
        """Adds a token -> the chunks that it adds to a stream, perhaps none."""
        text, entries = self.add(token)
        chunks = [self._chunk(token.choice, {"content": text}, entries, None)] if text or entries else []
        if token.piece.finish:
            chunks.append(self._chunk(token.choice, {}, None, token.piece.finish))
        return chunks

    def usage_chunk(self, prompt_tokens: int) -> dict[str, Any]:
        """The one after the last, for clients that ask for it."""
        return self._object("chat.completion.chunk", []) | {"usage": self._usage(prompt_tokens)}

    def _chunk(self, choice: int, delta: dict, entries: list[dict] | None, finish: str | None) -> dict[str, Any]:
        logprobs = None if entries is None else {"content": entries}
        part = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._object("chat.completion.chunk", [part])

    def _object(self, kind: str, choices: list) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _usage(self, prompt_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def _logprob(self, token: Token) -> dict[str, Any]:
        likeliest = [self._entry(id, value) for id, value in token.top[: self.top_logprobs]]
        return self._entry(token.piece.id, token.logprob) | {"top_logprobs": likeliest}

    def _entry(self, id: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([id], skip_special=False)
        # A part of a character has no text. OpenAI's least value stands for minus infinity, which JSON cannot write.
        data = None if UNREADABLE in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": data}


class _ChoiceText:
    """One answer, without white space at its ends, which is held back until more text follows."""

    def __init__(self):
        self.text, self.finish, self.logprobs = "", None, []
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        if not self.text:
            text = text.lstrip()
        new = text.rstrip()
        self._held = text[len(new) :]
        self.text += new
        return new
