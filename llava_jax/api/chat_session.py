"""The engines of LlavaModel.chat: what a conversation has read and answered stays on the device for its next turn."""

from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from llava_jax.errors import DataError
from llava_jax.inference.answer_memory import AnswerMemory
from llava_jax.inference.engine import GeneratedPiece, GenerationConfig, PieceWriter, Prompt, answer_limit, padded_rows
from llava_jax.inference.prefix_cache import PrefixCache
from llava_jax.inference.slot_engine import SlotEngine
from llava_jax.models.llava import Llava
from llava_jax.text.tokenizer import Tokenizer

SHORTEST = 512  # tokens of a slot; a longer conversation gets twice as many, and so on


class ChatSession:
    """Answers single prompts. Answers may overlap: each has an engine of its own until it ends."""

    def __init__(self, model: Llava, params: dict, mesh: Mesh, tokenizer: Tokenizer, prefix_bytes: int = 1 << 30):
        """params: a decode_view. prefix_bytes: of device memory for the keys and values of earlier turns."""
        self.model, self.params, self.mesh, self.tokenizer = model, params, mesh, tokenizer
        self.memory, self.prefixes = AnswerMemory(tokenizer), PrefixCache(prefix_bytes)
        self._idle: list[SlotEngine] = []

    def stream(self, prompt: Prompt, settings: GenerationConfig) -> Iterator[GeneratedPiece]:
        """Yields the pieces of the answer. Raises as `answer_limit`, and DataError if the model computes NaN."""
        limit = answer_limit(self.model.config, "the prompt", prompt, settings.max_new_tokens)
        engine, ids = self._engine(len(prompt.tokens) + limit), []
        writer = PieceWriter(settings, self.tokenizer, limit)
        slot = engine.open(prompt, settings)
        try:
            while writer.finish is None:
                for token in engine.advance():
                    if token.fault:
                        raise DataError(f"no answer: {token.fault}; check the model's weights")
                    ids.append(token.id)
                    yield writer.piece(token.id)
        finally:  # also where the caller stops reading
            engine.close(slot)
            self._idle.append(engine)
        if ids[-1] in settings.stop_ids:
            self.memory.add(np.asarray(prompt.tokens), ids)

    def _engine(self, length: int) -> SlotEngine:
        """One that nobody uses, with slots of at least `length` tokens."""
        while self._idle:
            engine = self._idle.pop()
            if engine.length >= length:
                return engine
        positions = self.model.config.llm.max_positions
        length = min(max(SHORTEST, 1 << (length - 1).bit_length()), positions)
        rows = padded_rows(1, self.model.config.dtype, self.mesh)
        return SlotEngine(self.model, self.params, self.mesh, slots=rows, length=length, prefixes=self.prefixes)


class AnswerText:
    """Pieces of the text of an answer, without the white space before it. tokens: generated so far."""

    def __init__(self, pieces: Iterator[GeneratedPiece]):
        self.tokens = 0
        self._texts = self._read(pieces)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._texts)

    def close(self) -> None:
        """Ends the answer where it is, and frees its engine for the next one."""
        self._texts.close()

    def _read(self, pieces: Iterator[GeneratedPiece]) -> Iterator[str]:
        is_first = True
        for piece in pieces:
            self.tokens += 1
            text = piece.text.lstrip() if is_first else piece.text  # `ASSISTANT:` is followed by a space
            if text:
                is_first = False
                yield text
