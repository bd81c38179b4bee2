"""Trains the tokenizer that ships with the package: python launch/local/make_tiny_tokenizer.py

A byte-level BPE of 500 tokens on the texts of the synthetic scenes and the fixed strings of the vicuna_v1 template. It
is deterministic. Run it again only when the vocabulary of the scenes changes, and then retrain the towers too.
"""

from llava_jax.checkpoint.tokenizer import TINY_TOKENIZER, open_tokenizer
from llava_jax.data.sources.scenes import SceneSource
from llava_jax.text.templates import render
from llava_jax.text.tokenizer import train_tokenizer

SCENES = 3000


def texts():
    for kind in ("caption", "study", "tell", "instruct"):
        source = SceneSource(kind, seed=0, held_out=False, image_size=16)
        for i in range(SCENES):
            template = "vicuna_v1" if kind == "instruct" else "plain"
            segments = render(template, source[i].turns)
            yield from (s.text for s in segments if s.kind == "text")


if __name__ == "__main__":
    train_tokenizer(texts(), 512, TINY_TOKENIZER)
    tokenizer = open_tokenizer("tiny")
    sample = SceneSource("study", 0, False, 16)[0].turns[1][1]
    print(
        TINY_TOKENIZER, tokenizer.vocab_size, "tokens;", len(sample.split()), "words ->", len(tokenizer.encode(sample))
    )
