import json

import pytest

from llava_jax.datagen.contexts import ImageContext
from llava_jax.datagen.quality import FAULTS, is_english, text_faults

CONTEXT = ImageContext("1", "1.jpg", ("A dog sleeps on a red couch.", "A cartoon with a caption below it"))
PLAIN = ImageContext("2", "2.jpg", ("A dog sleeps on a red couch.",))
GOOD = "The image features a dog that sleeps on a red couch, with two pillows beside it and a lamp in the background."
LONG_ENOUGH = " The dog lies on the couch, and the room around it looks quiet, warm and tidy in the evening light."

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I cannot see the image.",  # a curly apostrophe
    "Sorry, no image was provided.",
    "As an AI language model, I do not have eyes.",
    "I am an AI and look at nothing.",
    "Without seeing the image, it is hard to say.",
    "I don't have access to images.",
    "I cannot provide a description of people.",
    "I apologize for the confusion, there is one dog.",
    "I am unable to view the picture directly.",
    "That would be against my guidelines.",
    "No picture has been included.",
]
META_REPLIES = [
    "Your message is empty.",
    "It seems your message appears to be blank. What would you like to know?",
    "Please provide the captions of the image.",
    "Please share more details, so that a dialogue can be written.",
    "You haven't provided any objects.",
    "Sure! Here is what I see: a dog.",
    "Certainly, I'll write it. The dog sleeps.",
    "Here are three questions and answers: what is on the couch?",
    "A dog sleeps on the couch. Let me know if you need more!",
    "A dog. I hope this helps!",
    "As requested, the dog is described.",
    "The dog is called [insert name].",
    "How can I help you today?",
    "I'd be happy to describe it.",
]
LEAKS = [
    "The captions say that the dog sleeps.",
    "According to the description, the dog sleeps.",
    "The descriptions mention a dog.",
    "The dog has the bounding box at the left.",
    "The dog is at [0.12, 0.3, 0.5, 0.61].",
    "The dog is at (0.1, 0.25).",
    "Its left edge lies at 0.584 of the width.",
    "The coordinates of the dog are to the left.",
    "Based on the provided information, the dog is tired.",
    "From the information given, the dog is tired.",
    "Going by the details provided, the dog is tired.",
    "The breed of the dog is not mentioned.",
    "In the image, they are described as antique.",  # GPT-4, of suitcases that it cannot see
    "One of the sentences states that the dog is old.",
]
ROLES = [
    "A dog.\nQuestion: where is it?",
    "Answer: a dog.",
    "**Question 2:** where is the dog?",
    "A dog.\n===",
    "USER: where is the dog? ASSISTANT: on the couch.",
    "<image>\nA dog.",
    "A dog.<|im_end|>",
    "A dog.</s>",
    "### Assistant: a dog.",
    "## Answer\nA dog.",
]
FAIR = [
    "Yes.",
    "No, I cannot find a dog in the image.",
    "I can't see any dogs in the image.",
    "The man cannot help his friend, so he calls someone.",
    "One can't help but notice the dog; I can't help but smile.",
    "A sign says: please wait here.",
    "The text on the sign says STOP.",
    "From the text on the shirt, he likes football.",
    "The sign provides information about the zoo, and the information provided by the signs is short.",
    "Her scarf coordinates with her hat.",
    "Guests feel free to sit on the couch.",
    "The room can be described as cozy.",
    "Here is a dog that sleeps.",
    "The dog weighs 7.5 kg and is 0.5 m high.",
    "The man is sorry for his friend; he apologizes.",
    "Certainly a dog, it is asleep.",
    "The answer is: a dog.",
    "The boxes (two of them) stand beside the couch.",
    "The exact breed cannot be determined from the image.",
]


@pytest.mark.parametrize(
    "name, answer",
    [("refusal", answer) for answer in REFUSALS]
    + [("meta reply", answer) for answer in META_REPLIES]
    + [("source leak", answer) for answer in LEAKS]
    + [("roles", answer) for answer in ROLES],
)
def test_a_faulty_answer_is_detected(name, answer):
    assert name in text_faults(PLAIN, "conversation", [("What is it?", answer)])
    assert name in text_faults(PLAIN, "conversation", [("What is it?", "A dog."), ("Where is it?", answer)])


@pytest.mark.parametrize("answer", FAIR)
def test_a_fair_answer_has_no_fault(answer):
    assert text_faults(PLAIN, "conversation", [("What is it?", answer)]) == []


@pytest.mark.parametrize("kind", ["conversation", "detail", "reasoning"])
def test_a_good_reply_of_each_kind_has_no_fault(kind):
    assert (
        text_faults(CONTEXT, kind, [("Can you provide a detailed description of the image?", GOOD + LONG_ENOUGH)]) == []
    )


def test_words_of_the_images_own_captions_are_no_leak():
    pairs = [("What is below the cartoon?", "A caption is below the cartoon.")]
    assert text_faults(CONTEXT, "conversation", pairs) == []
    assert text_faults(PLAIN, "conversation", pairs) == ["source leak"]


def test_a_leak_in_a_question_counts():
    pairs = [("What do the captions say?", "A dog sleeps.")]
    assert text_faults(PLAIN, "conversation", pairs) == ["source leak"]


@pytest.mark.parametrize(
    "pairs",
    [[], [("", "A dog.")], [("What is it?", " \n")], [("What is it?", "...")], [("?", "A dog.")]],
)
def test_empty_questions_and_answers(pairs):
    assert text_faults(PLAIN, "conversation", pairs) == ["empty"]


@pytest.mark.parametrize(
    "kind, count, expected",
    [
        ("conversation", 1, []),
        ("detail", 19, ["too short"]),
        ("detail", 20, []),
        ("reasoning", 14, ["too short"]),
        ("reasoning", 15, []),
        ("reasoning", 400, []),
        ("reasoning", 401, ["too long"]),
    ],
)
def test_lengths_in_words_by_kind(kind, count, expected):
    text = " ".join(["the", "dog"] * count)
    assert text_faults(PLAIN, kind, [("What is it?", " ".join(text.split()[:count]))]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "这张照片里有一只狗在红色沙发上睡觉。",
        "На фотографии собака спит на красном диване рядом с лампой.",
        "يوجد كلب نائم على الأريكة الحمراء",
        "赤いソファの上で犬が眠っています。",
        "Das Bild zeigt einen Hund, der auf einem roten Sofa schläft, und daneben steht eine Lampe auf dem Tisch.",
        "L'image montre un chien qui dort sur un canapé rouge, et une lampe se trouve sur la table à côté de lui.",
        "La imagen muestra un perro que duerme en un sofá rojo, y hay una lámpara encima de la mesa a su lado.",
        "L'immagine mostra un cane che dorme su un divano rosso, e accanto a lui c'è una lampada sul tavolo.",
        "A imagem mostra um cachorro que dorme em um sofá vermelho, e há uma lâmpada em cima da mesa ao lado.",
        "De afbeelding toont een hond die op een rode bank slaapt, en er staat een lamp op de tafel naast hem.",
        "Hình ảnh cho thấy một con chó đang ngủ trên ghế sofa màu đỏ và có một chiếc đèn trên bàn bên cạnh.",
    ],
)
def test_other_languages_are_detected(text):
    assert not is_english(text)
    assert text_faults(PLAIN, "conversation", [("Which animal is in the image?", text)]) == ["language"]


@pytest.mark.parametrize("text", ["", "Sí.", "A café named Über.", "Dog, cat, bird, cow, sheep.", GOOD, "12:30", "🐶"])
def test_english_and_undecidable_texts_pass(text):
    assert is_english(text)


def test_faults_are_named_in_the_order_of_the_table():
    answer = "I'm sorry, the captions are empty. Please provide more captions.\n==="
    names = text_faults(PLAIN, "detail", [("What is it?", answer)])
    assert names == [name for name in FAULTS if name in names]
    assert names == ["refusal", "meta reply", "source leak", "roles", "too short"]


def test_released_gpt4_answers_have_one_fault(real_data):
    """Of the 90 answers, one talks of its source: the suitcases "are described as antique"."""
    kinds = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}
    folder = real_data / "llava_bench_coco"
    faulty = {}
    for line in (folder / "qa90_gpt4_answer.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        names = text_faults(PLAIN, kinds[row["category"]], [("What is it?", row["text"])])
        faulty |= {row["question_id"]: names} if names else {}
    assert faulty == {2: ["source leak"]}
