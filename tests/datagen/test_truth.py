"""Verdicts of boxes on claims, and the measured shares."""

import dataclasses

import pytest

from llava_jax.datagen.categories import scene_vocabulary
from llava_jax.datagen.claims import Claim, claims_in
from llava_jax.datagen.contexts import Box, ImageContext
from llava_jax.datagen.truth import ALL, Share, check_text, measure_truth, truth_lines, verdict

DOG, CAT = Box("dog", 0.1, 0.1, 0.3, 0.3), Box("cat", 0.6, 0.5, 0.8, 0.9)
SECOND_DOG = Box("dog", 0.7, 0.1, 0.9, 0.3)  # right of the cat
BOXES = (DOG, CAT)


def claim(kind, subject, **details):
    return Claim(kind, subject, "", 0, 0, **details)


def side(subject, relation, other):
    return claim("relation", subject, relation=relation, object=other)


@pytest.mark.parametrize(
    "statement, boxes, expected",
    [
        (claim("exists", "dog"), BOXES, True),
        (claim("exists", "bird"), BOXES, False),
        (claim("exists", "bird"), (), False),
        (claim("exists", "bird"), None, None),
        (claim("exists", "bird", certain=False), BOXES, None),
        (claim("absent", "bird"), BOXES, True),
        (claim("absent", "dog"), BOXES, False),
        (claim("count", "dog", count=1), BOXES, True),
        (claim("count", "dog", count=2), BOXES, False),
        (claim("count", "dog", count=1), (DOG, SECOND_DOG), False),
        (claim("count", "dog", count=1, at_least=True), (DOG, SECOND_DOG), True),
        (claim("count", "dog", count=2, at_least=True), (DOG, SECOND_DOG), True),
        (claim("count", "dog", count=3, at_least=True), (DOG, SECOND_DOG), False),
        (claim("count", "dog", count=None), BOXES, None),
        (claim("count", "dog", count=12), (DOG,) * 10, None),  # annotators stop boxing
        (claim("count", "dog", count=12), (DOG,) * 9, False),
        (claim("count", "dog", count=5, at_least=True), (DOG,) * 10, True),
        (side("dog", "left", "cat"), BOXES, True),
        (side("dog", "right", "cat"), BOXES, False),
        (side("dog", "above", "cat"), BOXES, True),
        (side("cat", "above", "dog"), BOXES, False),
        (side("cat", "below", "dog"), BOXES, True),
        (side("dog", "left", "cat"), (DOG, SECOND_DOG, CAT), None),  # the pairs disagree
        (side("dog", "above", "cat"), (DOG, SECOND_DOG, CAT), True),
        (side("dog", "left", "bird"), BOXES, None),
        (side("dog", "left", "cat"), (DOG, dataclasses.replace(DOG, category="cat")), None),  # same centre
    ],
)
def test_verdicts(statement, boxes, expected):
    assert verdict(statement, boxes) is expected


def test_scene_boxes_of_any_colour_count_as_their_shape():
    boxes = (
        Box("red circle", 0, 0, 0.1, 0.1),
        Box("blue circle", 0.5, 0, 0.6, 0.1),
        Box("red cross", 0, 0.5, 0.1, 0.6),
    )
    vocabulary = scene_vocabulary()
    claims = {c.text: verdict(c, boxes, vocabulary) for c in claims_in("", "Two circles. One red circle.", vocabulary)}
    assert claims == {"Two circles": True, "One red circle": True}
    assert verdict(claim("count", "circle", count=3), boxes, vocabulary) is False


def test_measured_shares():
    context = ImageContext("1", "1.jpg", ("A dog and a bird on grass.",), (DOG, CAT))
    detail = check_text(
        "detail", [("", "Two dogs and a bird are here. Several cars may pass. There is no horse.")], context
    )
    short = check_text(
        "conversation", [("Is there a cat?", "Yes."), ("And a dog?", "The dog is right of the cat.")], context
    )
    unknown = check_text("detail", [("", "A dog.")], dataclasses.replace(context, boxes=None))
    truths = measure_truth([detail, short, unknown])
    assert list(truths) == ["conversation", "detail", ALL]
    assert truths["detail"].precision == Share(1, 2)  # dog; the bird has no box
    assert truths["detail"].with_captions == Share(2, 2)
    assert truths["detail"].recall == Share(1, 2)
    assert truths["detail"].absence == Share(1, 1)
    assert truths["detail"].count == Share(0, 1)
    assert truths["detail"].uncertain == {"exists": 2, "count": 1}  # the cars, and the dog without boxes
    assert truths["conversation"].recall == Share(2, 2)
    assert truths["conversation"].relation == Share(0, 1)
    assert truths[ALL].precision == Share(3, 4)
    assert [c.pair for c in short.claims] == [0, 1, 1]


def test_interval_of_a_share():
    assert Share(0, 0).interval is None and Share(0, 0).percent is None
    assert [round(end, 1) for end in Share(3, 4).interval] == [30.1, 95.4]  # Wilson 1927, by hand


def test_table_has_a_column_a_kind():
    context = ImageContext("1", "1.jpg", (), BOXES)
    lines = truth_lines(measure_truth([check_text("detail", [("", "Two dogs, a cat and possibly a bird.")], context)]))
    assert lines[0].split() == ["detail", "all"]
    cells = {line[:16].strip(): line[16:].split() for line in lines}
    assert cells["precision"][:6] == ["100.0", "[34.2,", "100.0]", "of", "2", "100.0"]
    assert cells["count"][0] == "0.0" and cells["open, exists"] == ["1", "1"] and cells["relation"] == ["-", "-"]
