"""SmolLM2-135M-Instruct, a published language model of 93 MB: from its GGUF file to generated text."""

import jax
import numpy as np
import pytest
import torch

import llava_jax
from llava_jax.runtime.mesh import make_mesh
from tests.checkpoint.gguf_files.gguf_files import smollm2

PROMPTS = (  # no digits: transformers' tokenizer of a GGUF splits them differently
    "The capital of France is",
    "Once upon a time there was a small boat that",
    "def reverse(text):\n    return",
    "Water boils when",
    "My favourite season is autumn, because",
)
NEW = 32


@pytest.fixture(scope="module")
def ours():
    return llava_jax.load(smollm2().path, dtype="float32", mesh=make_mesh(1, 1, 1, jax.devices()[:1]))


def test_32_greedy_tokens_of_5_prompts_equal_transformers(ours):
    pytest.importorskip("accelerate", reason="transformers reads GGUF files only with the package accelerate")
    from transformers import AutoModelForCausalLM

    path = smollm2().path
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32").eval()
    rows = [ours.tokenizer.encode(text) for text in PROMPTS]
    length = max(map(len, rows))
    ids, mask = np.full((5, length), ours.tokenizer.pad_id), np.zeros((5, length), np.int64)
    for i, row in enumerate(rows):  # left-padded, as transformers generates
        ids[i, length - len(row) :], mask[i, length - len(row) :] = row, 1
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=NEW, do_sample=False,
            eos_token_id=ours.tokenizer.eos_id, pad_token_id=ours.tokenizer.pad_id,
        ).numpy()[:, length:]  # fmt: skip
    actual = ours.generate(ids, attention_mask=mask, max_new_tokens=NEW)
    assert actual.shape == expected.shape == (5, NEW), "no prompt stops immediately"
    for text, a, b in zip(PROMPTS, actual, expected, strict=True):
        assert a.tolist() == b.tolist(), f"{text!r}: {ours.tokenizer.decode(a)!r}, theirs {ours.tokenizer.decode(b)!r}"
    assert "Paris" in ours.tokenizer.decode(actual[0])


def test_chat_uses_the_template_of_the_file_and_answers(ours):
    assert (ours.template, ours.config.vision) == ("smollm_2", None)
    answer = ours.chat([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=24)
    assert "Paris" in answer and "<|im_" not in answer
