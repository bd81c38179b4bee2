"""Turns token ids into text as they arrive: only whole characters, and no part of a stop string."""

from collections.abc import Sequence

from llava_jax.errors import ConfigError
from llava_jax.text.tokenizer import Tokenizer

UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # what tokenizers write for bytes that are not (yet) a character


class Detokenizer:
    """Receives ids one by one and returns text as soon as later ids cannot change it.

    The joined pieces equal tokenizer.decode of all ids. Bytes that may begin a character are held back: a text that
    ends in `UNREADABLE`, and SentencePiece's byte tokens until another token follows, because one wrong byte makes all
    characters of the run unreadable.

        <0xE2> -> "", <0x82> -> "", <0xAC> -> "", ▁a -> "€ a"          Ġcaf -> " caf", Ã -> "", © -> "é"
    """

    def __init__(self, tokenizer: Tokenizer):
        self.decode = tokenizer.decode
        names = (f"<0x{byte:02X}>" for byte in range(256))
        self.byte_ids = {tokenizer.backend.token_to_id(name) for name in names} - {None}
        self.name_of = tokenizer.backend.id_to_token
        self.released: list[int] = []  # the ids of the last piece; a decoder may depend on the token before
        self.held: list[int] = []

    def push(self, id: int) -> str:
        """The text that `id` completes."""
        self.held.append(id)
        if id in self.byte_ids or self.name_of(id) is None:  # an id beyond the vocabulary ends no run of bytes
            return ""
        text = self._text()
        return "" if text.endswith(UNREADABLE) else self._release(text)

    def flush(self) -> str:
        """The text that is still held back, readable or not; for after the last id."""
        return self._release(self._text())

    def _text(self) -> str:
        return self.decode(self.released + self.held)[len(self.decode(self.released)) :]

    def _release(self, text: str) -> str:
        self.released, self.held = self.held, []
        return text


class StopStrings:
    """Passes text through up to the first stop string, which is dropped.

    The first is the one that ends first; of several that end together, the longest. How the text is split into pieces
    makes no difference. The end of a text is held back while it may be the beginning of a stop string:

      stop "##\\n":   "a#" -> "a", "#" -> "", "#" -> "#", "\\n b" -> "", stopped

    Raises ConfigError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]):
        if not all(stops):
            raise ConfigError("a stop string is empty; leave it out, or write the text that ends an answer")
        self.stops = tuple(stops)
        self.held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown; empty once `is_stopped`."""
        if self.is_stopped:
            return ""
        text = self.held + text
        ends = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if ends:
            self.is_stopped, out = True, min(ends)[1]
        else:
            out = len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = "" if self.is_stopped else text[out:]
        return text[:out]

    def flush(self) -> str:
        """The text that is still held back; for after the last piece."""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper prefix of `stop` that ends the text."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
