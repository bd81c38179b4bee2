"""labelled_claims.jsonl: what a careful reader sees claimed in released GPT-4 answers, labelled by hand.

All 111 different answers of the two files are labelled, completely. 30 images have answers in qa90_gpt4_answer.jsonl;
11 of them (`random.Random(22).sample` of the 23 with the same answers in both) are listed with
coco2014_val_gpt4_qa_30x3.jsonl instead, as are the 7 images that only it has. `id` is a question_id or an image id;
`category` is one of the image's three answers.

Rules: of an answer, the first clear mention of each COCO category (by any synonym) is a claim that it exists; a number
of objects is a claim of its own. "the cat may be tired" claims a cat; "possibly a bottle" claims nothing; nor do
general statements ("cats like to sleep") or people behind the scene ("the owner"). Counts of a part ("two of the
people", "one on the left"), lower bounds ("at least two") and "a couple of" are no counts. A desk is no dining table,
drinking glasses, plates and luggage are no category, and an apple tree, a dog bed, an umbrella hat or the sculpture of
a cat's head is none of the objects in its name. Half a sandwich, a giraffe's head and a toothbrush's head are objects.
"""

import json
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).parent
RELATIONS = ("left", "right", "above", "below")


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


CLAIMS = read_jsonl(FOLDER / "labelled_claims.jsonl")
ANSWERS = [line.split("\t") for line in (FOLDER / "labelled_answers.txt").read_text(encoding="utf-8").splitlines()]


def test_labels_are_consistent():
    assert len(CLAIMS) >= 200
    for claim in CLAIMS:
        assert [claim["source"], str(claim["id"])] in ANSWERS
        assert (claim["count"] is not None) == (claim["kind"] == "count")
        assert (claim["relation"] in RELATIONS) == (claim["object"] is not None) == (claim["kind"] == "relation")
    keys = Counter(tuple(v for k, v in claim.items() if k != "text") for claim in CLAIMS)
    assert [key for key, count in keys.items() if count > 1] == []


def test_every_counted_or_located_object_also_exists():
    def answer_of(claim):
        return claim["source"], claim["id"], claim["category"]

    existing = {(*answer_of(claim), claim["subject"]) for claim in CLAIMS if claim["kind"] == "exists"}
    for claim in CLAIMS:
        for name in (claim["subject"], claim["object"] or claim["subject"]):
            assert (*answer_of(claim), name) in existing, claim


def test_labels_quote_their_answers(real_data):
    answers = {}
    for name, key, text in (
        ("qa90_gpt4_answer.jsonl", "question_id", "text"),
        ("coco2014_val_gpt4_qa_30x3.jsonl", "id", "output"),
    ):
        for row in read_jsonl(real_data / "llava_bench_coco" / name):
            answers[name, row[key], row.get("category") or row["type"]] = row[text]
    for claim in CLAIMS:
        assert claim["text"] in answers[claim["source"], claim["id"], claim["category"]], claim
