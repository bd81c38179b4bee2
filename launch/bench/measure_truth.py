"""Measures how truthful the released text-only GPT-4 answers about COCO images are, against the images' boxes.

    python launch/bench/measure_truth.py FOLDER [--wrong]

FOLDER holds LLaVA-Bench (COCO) as released: caps_boxes_coco2014_val_80.jsonl, qa90_questions.jsonl,
qa90_gpt4_answer.jsonl and coco2014_val_gpt4_qa_30x3.jsonl. Prints a table for each file of answers: existence precision
and recall, absence, counts and sides in percent with 95% Wilson intervals, and the number of claims left open.
"""

import argparse
import json
from pathlib import Path

from llava_jax.datagen.contexts import Box, ImageContext
from llava_jax.datagen.truth import CheckedText, check_text, measure_truth, truth_lines

KINDS = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def contexts(folder: Path) -> dict[str, ImageContext]:
    """COCO id -> what the teacher saw of the image."""
    return {
        row["id"]: ImageContext(
            row["id"],
            row["image"],
            tuple(row["captions"]),
            tuple(Box(instance["category"], *instance["bbox"]) for instance in row["instances"]),
        )
        for row in rows(folder / "caps_boxes_coco2014_val_80.jsonl")
    }


def answers(folder: Path) -> dict[str, list[tuple[str, str, str, str]]]:
    """File -> (COCO id, kind, question, answer) of each answer in it."""
    questions = {row["question_id"]: row for row in rows(folder / "qa90_questions.jsonl")}
    first, second = "qa90_gpt4_answer.jsonl", "coco2014_val_gpt4_qa_30x3.jsonl"
    pairs = [(questions[row["question_id"]], row) for row in rows(folder / first)]
    return {
        first: [(q["image"].split(".")[0], KINDS[row["category"]], q["text"], row["text"]) for q, row in pairs],
        second: [(r["id"], KINDS[r["type"]], r["instruction"], r["output"]) for r in rows(folder / second)],
    }


def wrong(texts: list[CheckedText]) -> None:
    for text in texts:
        for claim, right in zip(text.claims, text.verdicts, strict=True):
            if right is False:
                numbers = "" if claim.count is None else f" {claim.count}"
                print(f"  {text.context.id} {text.kind}: {claim.kind} {claim.subject}{numbers}: {claim.text!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wrong", action="store_true", help="list the claims that the boxes contradict")
    arguments = parser.parse_args()
    known = contexts(arguments.folder)
    for file, texts in answers(arguments.folder).items():
        checked = [check_text(kind, [(question, answer)], known[image]) for image, kind, question, answer in texts]
        print(f"{file}: {len(texts)} answers about {len({image for image, *_ in texts})} images")
        print("\n".join(truth_lines(measure_truth(checked))), end="\n\n")
        if arguments.wrong:
            wrong(checked)


if __name__ == "__main__":
    main()
