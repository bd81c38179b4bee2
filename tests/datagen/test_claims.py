"""Claims of hand-written sentences: traps of words, and what a sentence leaves open."""

import random
import time

import pytest

from llava_jax.datagen.categories import coco_vocabulary
from llava_jax.datagen.claims import claims_in
from llava_jax.datagen.scopes import MODALS, NEGATIONS, PERCEIVED
from tests.datagen.scripted_scenes import implied


def exists(subject):
    return "exists", subject, None, None, None


def absent(subject):
    return "absent", subject, None, None, None


def count(subject, number):
    return "count", subject, number, None, None


def left(subject, other):
    return "relation", subject, None, "left", other


def above(subject, other):
    return "relation", subject, None, "above", other


def certain(answer: str, question: str = "") -> set[tuple]:
    return {claim.meaning for claim in claims_in(question, answer) if claim.certain}


WORDS = [
    # one noun inside another
    ("A hot dog lies on a plate.", [exists("hot dog")]),
    ("The dining table is wooden.", [exists("dining table")]),
    ("A toy bear and a stuffed bear sit there.", [exists("teddy bear")]),
    ("It was a bear market.", []),
    ("A fire truck passes a truck stop.", [exists("truck")]),
    ("The bus stop is near a train station.", []),
    ("The dog bed is empty.", []),
    ("A baby elephant stands alone.", [exists("elephant")]),
    ("There is a wine bottle beside a wine glass.", [exists("bottle"), exists("wine glass")]),
    ("A cat owner waits with a dog leash.", []),
    ("He stands on a zebra crossing.", []),
    ("They wear umbrella hats.", []),
    ("A car door is open.", []),
    ("There are three pizza boxes.", []),
    ("A teddy-bear sits by a stop-sign.", [exists("teddy bear"), exists("stop sign")]),
    ("It is five o'clock; the bird's-eye view is good.", []),
    # other parts of speech
    ("He ties his tie.", [exists("tie")]),
    ("They train to book a room and sink into sleep.", []),
    ("An orange plate holds two oranges.", [exists("orange"), count("orange", 2)]),
    ("A white and orange cat sleeps.", [exists("cat")]),
    ("There is an orange and a banana.", [exists("orange"), exists("banana")]),
    ("A remote or rural area.", []),
    # plurals, synonyms, persons
    ("Two puppies and three knives are on the floor.", [count("dog", 2), count("knife", 3)]),
    ("The policeman helps an old lady and several children.", [exists("person")]),
    ("A flock of geese, and cattle, can be seen.", [exists("bird"), exists("cow")]),
    ("Men are riding motorbikes.", [exists("person"), exists("motorcycle")]),
    ("A tan and black cat is asleep.", [exists("cat")]),
    # pictures and toys
    ("A picture of a cat hangs on the wall.", []),
    ("This is a picture of a cat.", [exists("cat")]),
    ("A statue of a horse and a painting of two dogs.", []),
    ("He carries a toy truck and a fake bird.", []),
    ("A plush dog lies on a plush couch.", [exists("couch")]),
    # captions
    ("Cat curled up, sleeping on a bed.", [exists("cat"), exists("bed")]),
    ("Kites being flown at the beach.", [exists("kite")]),
]
OPEN = [
    # hedges
    ("There might be a cat, a dog and a bird.", []),
    ("He is possibly waiting for a bus, with a suitcase in hand.", [exists("suitcase")]),
    ("A table with plates, and perhaps a bottle.", [exists("dining table")]),
    ("The dog may be watching the laptop.", [exists("dog"), exists("laptop")]),
    ("The man appears to be riding a horse.", [exists("person")]),
    ("It looks like a cat.", []),
    ("A cat can be seen.", [exists("cat")]),
    ("You may notice a cat.", [exists("cat")]),
    ("She wants to buy a car.", []),
    ("A burger or a pizza is on the plate.", []),
    ("There is a cat or kitten.", [exists("cat")]),
    # hypotheses and questions
    ("If there were a dog, the cat would run.", [exists("cat")]),
    ("Is there a dog? Who knows.", []),
    ("It would be as if a train had passed.", []),
    ("He sits on a bench instead of a chair.", [exists("bench")]),
    # the category in general
    ("Cats are known to be curious.", []),
    ("Riding a bicycle is healthy.", []),
    ("Riding a bicycle, a boy smiles.", [exists("bicycle"), exists("person")]),
    ("Some people might prefer pizza.", []),
    ("Parking meters are commonly used in cities.", []),
    ("Bicycles and cars are parked there.", [exists("bicycle"), exists("car")]),
    ("It holds plates, forks, and spoons.", [exists("fork"), exists("spoon")]),
    # what is easy to mistake for a denial
    ("You can't miss the dog.", [exists("dog")]),
    ("There is not only a cat but also a dog.", [exists("cat"), exists("dog")]),
    ("The cat is not looking at the dog.", [exists("cat"), exists("dog")]),
    # denials of a part only
    ("The man has no umbrella.", [exists("person")]),
    ("The wall has no clock.", []),
    ("No people sit on the bench.", [exists("bench")]),
    ("There are no red cars.", []),
    ("There are no other elephants.", []),
    ("A dog is not visible on the couch.", [exists("couch")]),
    # denials of all
    ("There are no dogs, cats or birds.", [absent("dog"), absent("cat"), absent("bird")]),
    ("There is no dog, only a cat.", [absent("dog"), exists("cat")]),
    ("Neither dogs nor cats can be seen.", [absent("dog"), absent("cat")]),
    ("A dog is not visible.", [absent("dog")]),
    ("The image does not contain a clock, but a vase.", [absent("clock"), exists("vase")]),
]
NUMBERS = [
    ("There are two dogs.", [count("dog", 2)]),
    ("A pair of dogs runs.", [count("dog", 2)]),
    ("A pair of scissors lies there.", [exists("scissors")]),
    ("A dozen apples, and 14 oranges.", [count("apple", 12), count("orange", 14)]),
    ("Several dogs and a few cats.", [exists("dog"), exists("cat")]),
    ("About ten cows, two or three horses, up to 5 sheep.", [exists("cow"), exists("horse"), exists("sheep")]),
    ("A couple of cars are parked there.", [exists("car")]),
    ("A group of people gathers.", [exists("person")]),
    ("The number of dogs is two.", [count("dog", 2)]),
    ("There is one dog.", [count("dog", 1)]),
    ("One dog sits while another dog runs.", [exists("dog")]),
    ("One of the dogs sleeps.", [exists("dog")]),
    ("The second dog sleeps.", [exists("dog")]),
    ("There might be two dogs.", []),
    ("Both dogs sleep.", [count("dog", 2)]),
]
SIDES = [
    ("The cat is to the left of the dog.", [left("cat", "dog")]),
    ("The cat is to the right of the dog.", [left("dog", "cat")]),
    ("Above the bed hangs a clock.", [above("clock", "bed")]),
    ("A cup and a fork are to the left of the laptop.", [left("cup", "laptop"), left("fork", "laptop")]),
    ("The bench is on the dog's left.", [left("bench", "dog")]),
    ("There is a bed, with a tv to its left.", [left("tv", "bed")]),
    ("The girl's dog is left of the cat.", [left("dog", "cat"), exists("person")]),
    ("The dog on the couch is left of the cat.", [left("dog", "cat"), exists("couch")]),
    ("There is a dog and the cat is left of the bed.", [left("cat", "bed"), exists("dog")]),
    ("The cat is on the left side of the image.", [exists("cat")]),
    ("The cat is not to the left of the dog.", [exists("cat"), exists("dog")]),
    ("The cat might be to the left of the dog.", [exists("cat"), exists("dog")]),
    ("Is the cat left of the dog?", []),
    ("The cat is left or right of the dog.", [exists("cat"), exists("dog")]),
    ("A fork lies on the left side of the table.", [exists("fork"), exists("dining table")]),
    ("A man leans over the bench.", [exists("person"), exists("bench")]),
]
SHORT = [
    ("Is there a cat in the image?", "No, there isn't.", [absent("cat")]),
    ("Is there a cat in the image?", "Yes.", [exists("cat")]),
    ("Is there a brown cat?", "No.", []),
    ("Is there a cat on the couch?", "No.", []),
    ("Is there a cat on the wall?", "No.", []),
    ("Is the cat black?", "No.", []),
    ("How many dogs are there?", "Three.", [count("dog", 3)]),
    ("How many dogs are there?", "None.", [absent("dog")]),
    ("How many dogs are there?", "Possibly three.", [exists("dog")]),
    ("Is the cat left of the dog?", "Yes, it is.", [left("cat", "dog")]),
    ("is the cat left or right of the dog ?", "the cat is right and the dog is left , so right", [left("dog", "cat")]),
    ("Is it a cat or a dog?", "Yes.", []),
    ("What is in the image?", "A dog.", [exists("dog")]),
]


@pytest.mark.parametrize("answer, expected", WORDS + OPEN + NUMBERS + SIDES)
def test_claims_of_a_sentence(answer, expected):
    assert certain(answer) == implied(set(expected))


@pytest.mark.parametrize("question, answer, expected", SHORT)
def test_claims_of_a_short_answer(question, answer, expected):
    assert certain(answer, question) == implied(set(expected))


@pytest.mark.parametrize(
    "answer",
    ["At least two dogs.", "Two brown dogs.", "Two of us see two men.", "Two dogs on the couch.", "Two other dogs."],
)
def test_counts_of_a_part_are_lower_bounds(answer):
    assert [claim.at_least for claim in claims_in("", answer) if claim.kind == "count"] == [True]


def test_open_claims_are_returned_as_uncertain():
    claims = claims_in("", "Several dogs, and possibly a cat.")
    assert [(c.kind, c.subject, c.certain) for c in claims] == [
        ("exists", "dog", True), ("count", "dog", False), ("exists", "cat", False),
    ]  # fmt: skip


def test_text_is_what_stands_between_start_and_end():
    answer = "In the “photo”, the girl’s dog is to the left of two cats. 漢 A TV?! No birds."
    claims = claims_in("What is there?", answer)
    assert {(c.kind, c.text) for c in claims} >= {
        ("count", "two cats"), ("relation", "dog is to the left of two cats"), ("absent", "No birds"),
    }  # fmt: skip
    assert all(answer[c.start : c.end] == c.text for c in claims)


def test_each_claim_is_returned_once_at_its_certain_words():
    claims = claims_in("", "There may be a dog. A dog runs. The dog barks.")
    assert [(c.text, c.certain) for c in claims] == [("A dog", True)]


def test_any_text_is_read_without_an_error():
    rng = random.Random(0)
    nouns = [" ".join(noun) for noun in coco_vocabulary().nouns]
    parts = [*nouns, *MODALS, *NEGATIONS, *PERCEIVED, "left of", "to the right of", "above", "its left", "over", "two"]
    parts += [
        "'s",
        ",",
        ".",
        "?",
        ":",
        "(",
        "and",
        "or",
        "of",
        "a",
        "the",
        "is",
        "are",
        "one",
        "2",
        "to",
        "é",
        "\n",
        "-",
    ]
    for _ in range(1500):
        text = " ".join(rng.choices(parts, k=rng.randrange(12)))
        question = " ".join(rng.choices(parts, k=rng.randrange(8)))
        assert all(text[c.start : c.end] == c.text for c in claims_in(question, text))


def test_a_text_without_full_stops_takes_seconds():
    text = "a dog and a cat to the left of the bed " * 500
    start = time.process_time()
    assert {claim.subject for claim in claims_in("", text)} == {"dog", "cat", "bed"}
    assert time.process_time() - start < 20
