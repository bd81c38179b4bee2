"""The nouns of the vocabularies."""

import json

import pytest

from llava_jax.datagen.categories import COCO, COCO_NARROWER, coco_vocabulary, plurals, scene_vocabulary
from llava_jax.datagen.claims import claims_in


def test_coco_has_80_categories_and_each_names_itself():
    assert len(COCO) == 80 and COCO_NARROWER.keys() <= COCO.keys()
    nouns = coco_vocabulary().nouns
    for category in COCO.keys() - {"skis", "scissors"}:
        assert nouns[tuple(category.split())].category == category
    assert nouns["skis",].category == "skis" and nouns["scissors",].category == "scissors"


def test_the_released_boxes_use_these_categories(real_data):
    lines = (real_data / "llava_bench_coco/caps_boxes_coco2014_val_80.jsonl").read_text(encoding="utf-8").splitlines()
    categories = {instance["category"] for line in lines for instance in json.loads(line)["instances"]}
    assert len(categories) > 60 and categories <= COCO.keys()


def test_no_noun_stands_for_two_categories():
    names = [(name, category) for table in (COCO, COCO_NARROWER) for category in table for name in table[category]]
    forms = [(form, category) for name, category in names for form in {name, *plurals(name)}]
    assert len(forms) == len({form for form, _ in forms})


@pytest.mark.parametrize("category", COCO)
def test_every_synonym_claims_its_category(category):
    for name in (*COCO[category], *COCO_NARROWER.get(category, ())):
        claims = claims_in("", f"There is a {name} in the image.")
        assert [(c.kind, c.subject, c.certain) for c in claims] == [("exists", category, True)], name
        for plural in plurals(name):
            claims = {(c.kind, c.subject, c.count) for c in claims_in("", f"There are three {plural}.")}
            assert claims == {("exists", category, None), ("count", category, 3)}, plural


def test_plurals():
    assert plurals("toothbrush") == ("toothbrushes",) and plurals("couch") == ("couches",)
    assert plurals("tv remote") == ("tv remotes",) and plurals("donkey") == ("donkeys",) and plurals("luggage") == ()


def test_scene_nouns_cover_the_boxes_of_their_shape():
    vocabulary = scene_vocabulary()
    assert len(vocabulary.nouns) == 2 * (4 + 24)
    assert "red circle" in vocabulary.covered("circle") and vocabulary.covered("red circle") == {"red circle"}
