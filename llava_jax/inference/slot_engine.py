"""Answers prompts that come and go, over fixed slots: what `serve`, `chat` and LlavaModel.chat run.

    engine = SlotEngine(model, params, mesh, slots=8, length=2048)
    slot = engine.open(prompt, settings)          # None if no slot is free
    while engine.is_busy:
        for token in engine.advance():
            ...                                   # engine.close(token.slot) at the end of an answer, or to cancel it

One `advance` reads at most one part of one prompt (or encodes one image) and takes one step of all running answers, so
that a long prompt delays them by one part; the two are one program, which reads the weights once. It returns the tokens
of the call before: the device never waits for Python.
"""

import collections
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llava_jax.config.architectures import IMAGE_TOKEN_ID
from llava_jax.errors import ConfigError
from llava_jax.inference import image_pool
from llava_jax.inference import slots as device
from llava_jax.inference.decode import decode_view
from llava_jax.inference.engine import GenerationConfig, Prompt, answer_limit
from llava_jax.inference.prefix_cache import PrefixCache, prefix_key
from llava_jax.inference.sampling import SamplingParams
from llava_jax.models.llava import Llava

CHUNKS = (16, 32, 64, 256)  # tokens of a part of a prompt; each size is compiled once
MIN_PREFIX = 16  # tokens; to find fewer saves nothing


class SlotToken(NamedTuple):
    """One token of an answer, or the end of one that failed."""

    slot: int
    id: int
    fault: str | None = None  # why there is no token; close the slot
    logprob: float = 0.0  # of the id, and the likeliest ids with theirs, likeliest first: if wanted
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(eq=False)
class _Conversation:
    """What the host knows of a slot."""

    slot: int
    tokens: np.ndarray  # int32[n] of the prompt
    key: np.ndarray  # int64[n] of the prompt, see `prefix_key`
    images: list[tuple[bytes, np.ndarray]]  # (digest, pixels), in order
    sampling: SamplingParams
    wants_logprobs: bool
    limit: int  # tokens that the answer may have
    read: int = 0  # tokens of the prompt in the cache
    steps: int = 0  # tokens of the answer that are computed, or about to be
    answer: list[int] = dataclasses.field(default_factory=list)  # the ids that were returned
    is_healthy: bool = True

    @property
    def is_running(self) -> bool:
        return self.read == len(self.tokens) and self.steps < self.limit and self.is_healthy


@dataclasses.dataclass
class Counters:
    """What an engine has done so far."""

    prompt_tokens_read: int = 0
    prompt_tokens_cached: int = 0
    images_encoded: int = 0
    steps: int = 0
    longest_gap: float = 0.0  # seconds between two steps of running answers


class SlotEngine:
    """Fixed slots, and what was read before. Use it from one thread at a time."""

    def __init__(
        self, model: Llava, params: dict, mesh: Mesh, *, slots: int, length: int, prefixes: PrefixCache | None = None,
        image_bytes: int = 256 << 20,
    ):  # fmt: skip
        """Prepares `slots` conversations of up to `length` tokens each, prompt and answer together.

        params: as for `decode_view`. prefixes: keys and values of earlier conversations; None: at most 1 GiB of them.
        image_bytes: of device memory for features of earlier images. Raises ConfigError for slots that do not split
        over the mesh, and for a length that the model does not have.
        """
        c = model.config
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        if slots < 1 or slots % parts:
            raise ConfigError(f"{slots} slots do not split over {parts} devices (mesh data x fsdp); use a multiple")
        if not CHUNKS[0] <= length <= c.llm.max_positions:
            raise ConfigError(f"a length of {length} tokens: this model has from {CHUNKS[0]} to {c.llm.max_positions}")
        self.model, self.params, self.mesh, self.length = model, decode_view(params), mesh, length
        self.prefixes = PrefixCache(1 << 30) if prefixes is None else prefixes
        self.counters = Counters()
        self.conversations: list[_Conversation | None] = [None] * slots
        self.state = self._empty_slots()
        self.images = image_pool.ImagePool(model, self.params, mesh, image_bytes, at_once=CHUNKS[-1])
        self._in_flight: list[tuple[list[tuple[_Conversation, int]], device.Chosen]] = []  # with the row of each
        self._chunk: device.Chunk | None = None  # of the first of `_unread`, for the next program
        self._unread: collections.deque[_Conversation] = collections.deque()
        self._stepped_at: float | None = None
        # The largest part of a prompt that is read while answers are running, so that their next token takes up to
        # twice as long. `warm_up` measures it.
        self.part_beside_answers = CHUNKS[-1]
        self._faults: list[SlotToken] = []  # of `open`, for the next `advance`

    @property
    def is_busy(self) -> bool:
        """Whether a slot is open."""
        return any(self.conversations)

    @property
    def free_slots(self) -> int:
        """Slots that `open` can fill."""
        return self.conversations.count(None)

    def open(self, prompt: Prompt, settings: GenerationConfig, wants_logprobs: bool = False) -> int | None:
        """Puts a prompt into a free slot -> its number, or None if there is none.

        The answer's last token is the one at `answer_limit`; stop ids and stop strings are the caller's business.
        Raises DataError or TooLong as `answer_limit`.
        """
        limit = answer_limit(self.model.config, "the prompt", prompt, settings.max_new_tokens, self.length)
        if None not in self.conversations:
            return None
        images = [(_digest(np.asarray(image)), np.asarray(image)) for image in prompt.images]
        tokens = np.asarray(prompt.tokens, np.int32)
        sampling = SamplingParams(
            np.float32([settings.temperature]), np.int32([settings.top_k]), np.float32([settings.top_p]),
            np.uint32([settings.seed]), np.uint32([prompt.row]),
        )  # fmt: skip
        slot = self.conversations.index(None)
        key = prefix_key(tokens, IMAGE_TOKEN_ID, [digest for digest, _ in images], self.model.config.features)
        self.conversations[slot] = conversation = _Conversation(
            slot, tokens, key, images, sampling, wants_logprobs, limit
        )
        self._faults += self._guarded(lambda: self._start_reading(conversation), [conversation])
        return slot

    def close(self, slot: int) -> None:
        """Frees a slot, whether its answer is complete or not. Its keys and values stay for the next turn."""
        conversation = self.conversations[slot]
        self.conversations[slot] = None
        if conversation in self._unread:
            self._unread.remove(conversation)
        self._faults = [token for token in self._faults if token.slot != slot]
        self._guarded(lambda: self._leave(conversation), [])

    def advance(self) -> list[SlotToken]:
        """Takes a step of all running answers, reads a part of a prompt, and returns what the last call computed: up to
        one token of each slot."""
        computed, self._in_flight = self._in_flight, []
        tokens, self._faults = self._faults, []
        tokens += self._guarded(self._prepare_part, list(self._unread)[:1])
        running = [c for c in self.conversations if c and c.is_running]
        tokens += self._guarded(self._run, running if self._chunk is None else [self._unread[0]])
        for rows, chosen in computed:
            tokens += self._guarded(lambda r=rows, x=chosen: self._tokens(r, x), [c for c, _ in rows])
        return tokens

    # ------------------------------------------------------------------------------------------------------------

    def _empty_slots(self) -> device.Slots:
        capacity = self.length + CHUNKS[0]  # room for the padding of a prompt's last part
        with jax.set_mesh(self.mesh):
            return device.empty_slots(self.model.config, len(self.conversations), capacity)

    def _guarded(self, work: Callable[[], list[SlotToken]], suspects: list[_Conversation]) -> list[SlotToken]:
        """`work()`. Where the device fails, e.g. for want of memory, the suspects fail and all others begin again."""
        try:
            with jax.set_mesh(self.mesh):
                return work()
        except Exception as error:  # of any kind: none may end the answers of others
            logging.getLogger(__name__).error("the model failed", exc_info=error)
            fault = f"the model failed ({type(error).__name__})"
            for c in suspects:
                c.is_healthy = False
            self._restart()
            return [SlotToken(c.slot, -1, fault) for c in suspects if self.conversations[c.slot] is c]

    def _restart(self) -> None:
        """Reads all open conversations again, up to where their answers are: a failed program may have taken its
        donated arrays with it. Tokens do not change, because each depends on its position and seed alone."""
        self.state, self._in_flight, self._chunk = self._empty_slots(), [], None
        self._unread.clear()
        self.images.clear()
        for slot, c in enumerate(self.conversations):
            if c and c.is_healthy:
                answer = np.array(c.answer, np.int32)
                tokens, key = np.concatenate([c.tokens, answer]), np.concatenate([c.key, answer.astype(np.int64)])
                limit = c.limit - len(answer)
                again = _Conversation(slot, tokens, key, c.images, c.sampling, c.wants_logprobs, limit)
                self.conversations[slot] = again
                self._start_reading(again)

    def _start_reading(self, conversation: _Conversation) -> list[SlotToken]:
        """Begins after the longest prefix that is known. The last token is always read: it chooses the next one."""
        count, prefix = self.prefixes.longest(conversation.key)
        count = min(count, len(conversation.key) - 1)
        if count >= MIN_PREFIX:
            if jax.tree.leaves(prefix)[0].shape[1] > self.length:  # of an engine with longer slots
                length = self._prefix_length(count)
                prefix = jax.tree.map(lambda x: x[:, :length], prefix)
            with jax.set_mesh(self.mesh):
                self.state = device.insert_prefix(self.state, prefix, np.int32(conversation.slot), np.int32(count))
            conversation.read = count
            self.counters.prompt_tokens_cached += count
        self._unread.append(conversation)
        return []

    def _leave(self, conversation: _Conversation) -> list[SlotToken]:
        """Keeps what a closed conversation has read and answered, if its values are numbers."""
        if not conversation.is_healthy:
            self.state = device.clear_slot(self.state, np.int32(conversation.slot))
        elif len(conversation.answer) > 1:
            in_cache = np.array(conversation.answer[:-1], np.int64)  # the last one is not there yet
            self._remember(conversation.slot, np.concatenate([conversation.key, in_cache]))
        return []

    def _remember(self, slot: int, key: np.ndarray) -> None:
        """Keeps the keys and values of a slot's first tokens."""
        if not self.prefixes.holds(key):
            prefix = device.copy_prefix(self.state, np.int32(slot), self._prefix_length(len(key)))
            self.prefixes.add(key, prefix, sum(x.nbytes for x in jax.tree.leaves(prefix)))

    def prefix_lengths(self) -> list[int]:
        """The lengths in which prefixes are copied; each is compiled once."""
        return [n for n in (64 << i for i in range(32)) if n < self.length] + [self.length]

    def _prefix_length(self, count: int) -> int:
        return next(n for n in self.prefix_lengths() if n >= count)

    def _prepare_part(self) -> list[SlotToken]:
        """Chooses the next part of the prompt that waits longest, or encodes an image that it needs."""
        self._chunk = None
        if not self._unread:
            return []
        c = self._unread[0]
        start, count, width = self._next_part(c)
        tokens = np.zeros(width, np.int32)
        tokens[:count] = c.tokens[start : start + count]
        is_image = c.tokens == IMAGE_TOKEN_ID
        numbers = (np.cumsum(is_image) - 1)[start : start + count][tokens[:count] == IMAGE_TOKEN_ID]  # of its features
        features = self.model.config.features
        needed = [c.images[i] for i in np.unique(numbers // features)] if len(numbers) else []
        for digest, pixels in needed:
            if not self.images.holds(digest):
                self.images.encode(digest, pixels, [name for name, _ in needed])
                self.counters.images_encoded += 1
                return []
        rows = np.zeros(width, np.int32)
        rows[:count][tokens[:count] == IMAGE_TOKEN_ID] = [
            self.images.row(c.images[number // features][0]) + number % features for number in numbers
        ]
        self._chunk = device.Chunk(
            np.int32(c.slot), np.int32(start), np.int32(count), tokens, rows, c.sampling, np.bool_(c.wants_logprobs)
        )
        return []

    def _next_part(self, c: _Conversation) -> tuple[int, int, int]:
        """(start, tokens, width with padding) of the next part: the smallest size that holds the rest, or the largest,
        but never beyond the end of the cache."""
        left, room = len(c.tokens) - c.read, self.length + CHUNKS[0] - c.read
        largest = self.part_beside_answers if any(c and c.is_running for c in self.conversations) else CHUNKS[-1]
        sizes = [size for size in CHUNKS if size <= min(room, largest)]
        width = next((size for size in sizes if size >= left), sizes[-1])
        return c.read, min(left, width), width

    def _run(self) -> list[SlotToken]:
        """One step of all running answers, the part of `_prepare_part`, or both. Returns no tokens yet."""
        running, chunk = [c for c in self.conversations if c and c.is_running], self._chunk
        now = time.monotonic()
        if running and self._stepped_at is not None:
            self.counters.longest_gap = max(self.counters.longest_gap, now - self._stepped_at)
        self._stepped_at = now if running else None
        if not running and chunk is None:
            return []
        active = np.zeros(len(self.conversations), bool)
        active[[c.slot for c in running]] = True
        wants_logprobs = np.bool_(any(c.wants_logprobs for c in running))
        if chunk is None:
            self.state, chosen = device.decode_slots(self.model, self.params, self.state, active, wants_logprobs)
        else:
            chunk = chunk.replace(wants_logprobs=chunk.wants_logprobs | wants_logprobs)
            arrays = self.state, self.images.features, chunk, active if running else None
            self.state, chosen = device.read_chunk(self.model, self.params, *arrays)
        for array in jax.tree.leaves(chosen):
            array.copy_to_host_async()
        rows = [(c, c.slot) for c in running]
        if running:
            self.counters.steps += 1
        for c in running:
            c.steps += 1
        if chunk is not None:
            c = self._unread[0]
            c.read += int(chunk.count)
            self.counters.prompt_tokens_read += int(chunk.count)
            if c.read == len(c.tokens):
                self._unread.popleft()
                c.steps = 1
                rows.append((c, -1))  # the last row is that of the part
        self._in_flight.append((rows, chosen))
        return []

    def _tokens(self, rows: list[tuple[_Conversation, int]], chosen: device.Chosen) -> list[SlotToken]:
        """The tokens of a program, for the conversations that are still open."""
        chosen = jax.tree.map(np.asarray, chosen)
        tokens = []
        for c, row in rows:
            if self.conversations[c.slot] is not c or not c.is_healthy:
                continue
            if not chosen.is_finite[row]:
                c.is_healthy = False
                tokens.append(SlotToken(c.slot, -1, "the model computed values that are not numbers"))
                continue
            if not c.answer:  # not earlier: values that are no numbers must not be kept
                self._remember(c.slot, c.key)
            c.answer.append(int(chosen.token[row]))
            top = ()
            if c.wants_logprobs:
                top = tuple(zip(chosen.top_ids[row].tolist(), chosen.top_logprobs[row].tolist(), strict=True))
            tokens.append(SlotToken(c.slot, c.answer[-1], None, float(chosen.logprob[row]), top))
        return tokens


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(f"{image.dtype}{image.shape}".encode() + image.tobytes()).digest()
