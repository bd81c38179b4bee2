"""Which image gets which row, what becomes of replies, and the folder of a run."""

import json

import pytest

from llava_jax.datagen.assemble import DROPS, RowOptions, row_records, vocabulary_of, write_rows
from llava_jax.datagen.avoidance import PAIRS, AbsentObjects, absent_pair
from llava_jax.datagen.categories import coco_vocabulary, scene_vocabulary
from llava_jax.datagen.contexts import Box, ImageContext
from llava_jax.datagen.instruct import (
    RowRequest,
    contexts_text,
    open_folder,
    plan_requests,
    read_folder,
    without_excluded,
)
from llava_jax.datagen.prompts import DETAIL_QUESTIONS
from llava_jax.datagen.second_opinion import opinion_requests, parse_opinion
from llava_jax.errors import ConfigError
from llava_jax.llm_client.cache import Reply

BUS = (Box("bus", 0.1, 0.2, 0.6, 1.0),)
CONTEXTS = [ImageContext(str(i), f"{i}.jpg", (f"A bus {i}.",), BUS if i % 2 else None) for i in range(100)]
ALL = {"conversation": 1.0, "detail": 1.0, "reasoning": 1.0}
TALK = (
    "Question:\nWhat is it?\n===\nAnswer:\nA bus.\n===\nQuestion:\nIs there a dog?\n===\nAnswer:\nYes, there is a dog."
)
LONG = "The image shows one bus that waits on a street, and a few trees are seen behind it on this sunny afternoon."


def reply(text: str, finish: str = "stop", is_refused: bool = False) -> Reply:
    return Reply(text, finish, is_refused, "m", 100, 10)


def checks(replies: dict, opinions: dict | None = None, contexts=CONTEXTS, requests=None, **options) -> list[dict]:
    requests = requests or plan_requests(contexts, ALL, 0)[0]
    objects = AbsentObjects(contexts, vocabulary_of(contexts))
    return row_records(requests, replies, opinions or {}, RowOptions(0, **options), objects)


def test_kinds_with_boxes_need_boxes():
    requests, candidates = plan_requests(CONTEXTS, ALL, 0)
    assert candidates == {"conversation": 100, "detail": 50, "reasoning": 50} and len(requests) == 200
    assert [r.id for r in requests[:4]] == ["0/conversation", "1/conversation", "1/detail", "1/reasoning"]
    empty = ImageContext("e", "e.jpg", ("Sky.",), ())  # annotated, without objects
    assert len(plan_requests([empty], ALL, 0)[0]) == 3


def ids(requests: list[RowRequest], kind: str) -> set[str]:
    return {r.context.id for r in requests if r.kind == kind}


def test_draw_depends_on_seed_kind_and_id_only():
    sizes = {"conversation": 20, "detail": 0.2, "reasoning": 0}
    first, _ = plan_requests(CONTEXTS, sizes, 1)
    assert len(ids(first, "conversation")) == 20 and len(ids(first, "detail")) == 10 and not ids(first, "reasoning")
    again, _ = plan_requests(CONTEXTS[::-1], sizes, 1)
    larger, _ = plan_requests(CONTEXTS, sizes | {"conversation": 40}, 1)
    other, _ = plan_requests(CONTEXTS, sizes, 2)
    boxed, _ = plan_requests(CONTEXTS[1::2], {kind: 25 for kind in ALL}, 1)
    assert len({frozenset(ids(boxed, kind)) for kind in ALL}) == 3  # the kinds are drawn independently
    assert ids(again, "conversation") == ids(first, "conversation") < ids(larger, "conversation")
    assert ids(other, "conversation") != ids(first, "conversation")


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"detail": 51}, "--detail-rows 51: there are 50 images with known boxes"),
        ({"conversation": 101}, "--conversation-rows 101: there are 100 images"),
        ({"conversation": -1}, "--conversation-rows -1: there are"),
        ({"reasoning": 1.5}, "--reasoning-rows 1.5: a share is from 0.0 to 1.0"),
        ({"reasoning": float("nan")}, "--reasoning-rows nan: a share is"),
    ],
)
def test_impossible_sizes_are_named(sizes, message):
    with pytest.raises(ConfigError, match=message):
        plan_requests(CONTEXTS, ALL | sizes, 0)


def test_excluded_images_are_left_out_by_name_or_id():
    contexts = [ImageContext("a", "COCO_val2014_7.jpg", ("x",)), ImageContext("9", "b.jpg", ("x",)), CONTEXTS[0]]
    assert without_excluded(contexts, {"7", "9"}) == [CONTEXTS[0]]


def test_every_request_has_a_record_and_bad_replies_a_reason():
    replies = {
        "0/conversation": reply(TALK),
        "1/conversation": reply("", is_refused=True),
        "1/detail": reply(LONG),
        "1/reasoning": reply(TALK, "length"),
        "2/conversation": reply("No.", is_refused=True),
        "3/detail": reply("", "content_filter", is_refused=True),
    }
    records = checks(replies)
    reasons = [record["reason"] for record in records]
    assert len(records) == 200 and reasons[:5] == [None, "empty reply", None, "cut at the token limit", "refused"]
    assert records[6]["reason"] == "refused" and set(reasons[7:]) == {"no reply"}
    talk, _, detail = records[:3]
    assert talk["pairs"] == [("What is it?", "A bus."), ("Is there a dog?", "Yes, there is a dog.")]
    assert detail["pairs"][0][0] in DETAIL_QUESTIONS and detail["pairs"][0][1] == LONG
    assert (talk["finish"], talk["input_tokens"], talk["output_tokens"], talk["is_batch"]) == ("stop", 100, 10, False)
    assert records[3]["reply"] == TALK and records[7]["reply"] is None and "reply" not in talk


def test_claims_are_checked_against_the_boxes():
    claims = checks({"1/conversation": reply(TALK)})[1]["claims"]
    found_claims = {(c["subject"], c["kind"], c["pair"], c["right"]) for c in claims}
    assert {("bus", "exists", 0, True), ("dog", "exists", 1, False)} <= found_claims


DROPPED = {
    "refusal": TALK.replace("A bus.", "I cannot see the image."),
    "source leak": TALK.replace("A bus.", "The caption says that it is a bus."),
    "false claim": TALK,
    "too short": None,
}


@pytest.mark.parametrize("name", DROPPED)
def test_filters_are_opt_in(name):
    replies = {"1/conversation": reply(DROPPED[name] or TALK), "1/detail": reply("A bus.")}
    index = 2 if name == "too short" else 1
    assert checks(replies)[index]["kept"]
    record = checks(replies, drop=(name.replace(" ", "-"),))[index]
    assert not record["kept"] and record["reason"] == f"dropped: {name}" and record["pairs"]


def test_duplicates_are_named_and_dropped_on_demand():
    replies = {f"{i}/detail": reply(LONG) for i in (1, 3)}
    first, second = (r for r in checks(replies, drop=("duplicate",)) if r["pairs"])
    assert first["kept"] and first["duplicate_of"] is None
    assert second["reason"] == "dropped: duplicate" and second["duplicate_of"] == "1/detail"


def test_second_opinion_is_a_column_and_a_filter():
    requests = opinion_requests("1/conversation", CONTEXTS[1], [("q", "a"), ("r", "b")])
    assert list(requests) == ["1/conversation/opinion/0", "1/conversation/opinion/1"]
    text = requests["1/conversation/opinion/1"][1]["content"]
    assert text == "A bus 1.\n\nbus: [0.1, 0.2, 0.6, 1.0]\n\nQuestion: r\n\nAnswer: b\n\nSupported?"
    opinions = {"1/conversation/opinion/0": reply("**Yes**, it is."), "1/conversation/opinion/1": reply("no")}
    replies = {"1/conversation": reply(TALK)}
    assert checks(replies, opinions)[1]["supported"] == [True, False] and checks(replies, opinions)[1]["kept"]
    assert checks(replies)[1]["supported"] == [None, None]
    assert checks(replies, opinions, drop=("unsupported",))[1]["reason"] == "dropped: unsupported"
    assert [parse_opinion(text) for text in ("Yes", "no.", "Nothing", "It is", "")] == [True, False, None, None, None]


def test_unknown_filter_is_named():
    with pytest.raises(ConfigError, match="--drop too-loud: is no check; checks are empty, refusal, meta-reply"):
        RowOptions(0, drop=("too-loud",))
    RowOptions(0, drop=DROPS)
    with pytest.raises(ConfigError, match="--avoidance is a share"):
        RowOptions(0, avoidance=1.5)


KITCHEN = [
    ImageContext(f"k{i}", "k.jpg", ("A kitchen.",), (Box("cup", 0, 0, 1, 1), Box("spoon", 0, 0, 1, 1)))
    for i in range(99)
]
STREET = [ImageContext("s", "s.jpg", ("A street.",), (Box("bus", 0, 0, 1, 1), Box("skis", 0, 0, 1, 1)))]
MUG = ImageContext("m", "m.jpg", ("A mug on a table.",), ())


def test_absent_objects_are_neither_boxed_nor_named_by_a_caption():
    objects = AbsentObjects([*KITCHEN, *STREET, MUG], coco_vocabulary())
    pairs = [absent_pair(ImageContext(str(i), "x", MUG.captions, ()), objects, 1.0, 0) for i in range(300)]
    text = str(pairs)
    mugs = [absent_pair(ImageContext(str(i), "x", MUG.captions, STREET[0].boxes), objects, 1.0, 0) for i in range(99)]
    assert "cup" not in text + str(mugs) and "spoon" in str(mugs)  # a mug is a cup
    assert all(name in text for name in ("a bus", "a spoon", "any skis", "Where are the skis", "There are no skis"))
    assert len({question.replace("bus", "spoon") for question, _ in pairs if "skis" not in question}) == len(PAIRS)
    for context in (*KITCHEN[:20], *STREET):
        question, answer = absent_pair(context, objects, 1.0, 0)
        assert not any(box.category in question for box in context.boxes) and ("no" in answer.lower())
    assert absent_pair(ImageContext("u", "u", ("x",), None), objects, 1.0, 0) is None
    assert absent_pair(MUG, AbsentObjects([MUG], coco_vocabulary()), 1.0, 0) is None


def test_expected_objects_are_drawn_more_often():
    """Kitchens have a cup and a spoon: with a cup alone, a spoon is expected. Two thirds of 300 draws are 200 +- 33 (4
    standard deviations); a uniform draw would be 100."""
    objects = AbsentObjects([*KITCHEN, *STREET], coco_vocabulary())
    cups = [ImageContext(str(i), "x", ("x",), (Box("cup", 0, 0, 1, 1),)) for i in range(300)]
    names = [absent_pair(context, objects, 1.0, 0)[0] for context in cups]
    assert sum("spoon" in name for name in names) > 167
    assert names == [absent_pair(context, objects, 1.0, 0)[0] for context in cups]
    share = sum(absent_pair(context, objects, 0.3, 0) is not None for context in cups)
    assert 60 <= share <= 120  # 90 +- 4 standard deviations


def test_absent_pair_is_in_the_row_and_not_among_the_teachers(tmp_path):
    requests = plan_requests(STREET, ALL | {"detail": 0, "reasoning": 0}, 0)[0]
    objects = AbsentObjects([*KITCHEN, *STREET], coco_vocabulary())
    replies = {"s/conversation": reply(TALK.replace("dog", "bus"))}
    (record,) = row_records(requests, replies, {}, RowOptions(0, avoidance=1.0), objects)
    assert len(record["pairs"]) == 2 and len(record["absent"]["pair"]) == 2
    assert write_rows(tmp_path, requests, [record], 0) == {"conversation": 1}
    (row,) = json.loads((tmp_path / "instruct.json").read_text())
    values = [turn["value"] for turn in row["conversations"]]
    assert len(values) == 6 and record["absent"]["pair"][1] == values[2 * record["absent"]["position"] + 1]
    assert sum("<image>" in value for value in values) == 1 and "<image>" in values[0]


def test_vocabulary_follows_the_boxes():
    scene = ImageContext("1", "1.png", ("x",), (Box("red circle", 0, 0, 1, 1),))
    assert vocabulary_of([scene]) is scene_vocabulary() and vocabulary_of([scene, *STREET]) is coco_vocabulary()
    assert vocabulary_of([CONTEXTS[0]]) is coco_vocabulary()


def test_folder_belongs_to_one_run(tmp_path):
    requests, _ = plan_requests(CONTEXTS[:3], ALL, 0)
    settings, text = {"model": "m", "seed": 0, "rows": {"drop": []}}, contexts_text(requests)
    assert open_folder(tmp_path / "o", settings, text) and not open_folder(tmp_path / "o", settings, text)
    assert not open_folder(tmp_path / "o", settings | {"rows": {"drop": ["refusal"]}}, text)
    assert read_folder(tmp_path / "o") == (settings | {"rows": {"drop": ["refusal"]}}, CONTEXTS[:3])
    with pytest.raises(ConfigError, match='belongs to a run with another model: "m" there, "n" now'):
        open_folder(tmp_path / "o", settings | {"model": "n"}, text)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(ConfigError, match="exists and is no folder of `datagen instruct`"):
            open_folder(tmp_path / name, settings, text)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "contexts.jsonl").write_text("half")  # killed before the settings were written
    assert open_folder(tmp_path / "torn", settings, text)
    assert read_folder(tmp_path / "torn")[1] == CONTEXTS[:3]
