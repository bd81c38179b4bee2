"""The checker's precision and recall on the claims of released GPT-4 answers that were labelled by hand.

`pytest tests/datagen/test_checker_on_labels.py -s -n 0` prints them by kind, and the differences.
Lower bounds ("two of the people") are not labelled, and left out here.
"""

from collections import defaultdict

from llava_jax.datagen.claims import KINDS, Claim, claims_in
from llava_jax.datagen.truth import Share
from tests.datagen.test_labelled_claims import ANSWERS, CLAIMS, read_jsonl

PRECISION, RECALL = 95.0, 80.0


def labelled_answers(folder) -> dict[tuple, tuple[str, str]]:
    """(file, id, kind of answer) -> question and answer, of all that were labelled."""
    questions = {row["question_id"]: row["text"] for row in read_jsonl(folder / "qa90_questions.jsonl")}
    result = {}
    for row in read_jsonl(folder / "qa90_gpt4_answer.jsonl"):
        key = "qa90_gpt4_answer.jsonl", row["question_id"], row["category"]
        result[key] = questions[row["question_id"]], row["text"]
    for row in read_jsonl(folder / "coco2014_val_gpt4_qa_30x3.jsonl"):
        result["coco2014_val_gpt4_qa_30x3.jsonl", row["id"], row["type"]] = row["instruction"], row["output"]
    return {key: value for key, value in result.items() if [key[0], str(key[1])] in ANSWERS}


def meaning(label: dict) -> tuple:
    return Claim(
        label["kind"], label["subject"], "", 0, 0, label["count"], label["relation"], label["object"]
    ).meaning  # fmt: skip


def test_checker_agrees_with_labels(real_data):
    labels = defaultdict(set)
    for label in CLAIMS:
        labels[label["source"], label["id"], label["category"]].add(meaning(label))
    precision, recall = defaultdict(Share), defaultdict(Share)
    for key, (question, answer) in labelled_answers(real_data / "llava_bench_coco").items():
        claims = [claim for claim in claims_in(question, answer) if claim.certain and not claim.at_least]
        got = {claim.meaning for claim in claims}
        for kind, *rest in sorted(got ^ labels[key], key=str):
            print("missed" if (kind, *rest) in labels[key] else "extra ", key, kind, *rest)
        for names, right, every in ((precision, got, labels[key]), (recall, labels[key], got)):
            for claim in right:
                names[claim[0]] += Share(int(claim in every), 1)
    total = [sum(shares.values(), Share()) for shares in (precision, recall)]
    for kind, shares in [*((kind, (precision[kind], recall[kind])) for kind in KINDS), ("all", total)]:
        cells = [f"{share.right} of {share.count} {share.interval}" for share in shares]
        print(f"{kind:9} precision {cells[0]}, recall {cells[1]}")
    assert total[0].percent >= PRECISION and total[1].percent >= RECALL
    assert total[1].count == len(CLAIMS)
