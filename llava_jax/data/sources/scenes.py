"""Endless training examples of synthetic scenes, one kind of text per source.

| kind     | text about the image                                                                      |
|----------|-------------------------------------------------------------------------------------------|
| caption  | stage 1: a brief caption                                                                  |
| instruct | stage 2: conversation, detailed description or complex reasoning, mixed as in LLaVA-158K  |
| study    | a short question and its answer, as running text                                          |
| tell     | a caption, a short question, or a question answered with the reason first                 |

`exam(...)` returns held-out questions, equally many of each kind, for the accuracy table.
"""

import random

from llava_jax.data.example import Example
from llava_jax.data.sources import scene_world
from llava_jax.errors import ConfigError

KINDS = ("caption", "study", "tell", "instruct")
ENDLESS = 2**31 - 1  # number of indices, each another scene
# LLaVA-Instruct-158K: 58K conversations, 23K detailed descriptions, 77K complex reasoning (paper, section 3)
MIXTURE = (("conversation", 58), ("detail", 23), ("reasoning", 77))
# kind -> number of answers that are equally likely without the image
QUESTION_KINDS = {
    "color": len(scene_world.COLORS), "shape": len(scene_world.SHAPES), "size": len(scene_world.SIZES),
    "position": len(scene_world.POSITIONS), "count": len(scene_world.NUMBERS) - 1, "existence": 2, "relation": 2,
    "reasoning": len(scene_world.POSITIONS),
}  # fmt: skip
CONVERSATION_TURNS = 3
# kind -> its weight in `study`, among the kinds a scene allows; what is learned last has the largest
STUDY = {"color": 3, "shape": 2, "size": 2, "position": 5, "count": 2, "existence": 2}
REASONED = ("relation", "reasoning")  # kinds whose answers state a reason before the conclusion


class SceneSource:
    """Random-access source of examples that depend on index and seed only.

    held_out: these scenes never occur among the train scenes. image_size: the side of the rendered image in pixels.
    Raises ConfigError for an unknown `kind`.
    """

    def __init__(self, kind: str, seed: int, held_out: bool, image_size: int, length: int = ENDLESS):
        if kind not in KINDS:
            raise ConfigError(f"scenes={kind!r} is not one of {', '.join(KINDS)}")
        self.kind, self.seed, self.held_out, self.image_size, self.length = kind, seed, held_out, image_size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        scene = scene_world.draw_scene(self.seed, index, self.held_out)
        rng = random.Random(f"{self.kind}/{self.seed}/{index}/{self.held_out}")
        name = f"scene-{'held-out-' if self.held_out else ''}{self.seed}-{index}"
        image = scene_world.render_scene(scene, self.image_size)
        if self.kind == "instruct":
            return _instruction(name, scene, image, rng)
        if self.kind == "caption" or (self.kind == "tell" and rng.random() < 0.4):
            text = scene_world.caption(scene, rng)
        else:
            # One question per row: after earlier questions, it is far harder to learn which object the last one means.
            questions = scene_world.questions(scene, rng)
            if self.kind == "study" or rng.random() < 0.4:
                questions = [q for q in questions if q.kind in STUDY]
                q = rng.choices(questions, [STUDY[q.kind] for q in questions])[0]
            else:
                q = next(q for q in questions if q.kind in REASONED)
            text = f"{q.text} {q.answer} ."
        return Example(name, _turns([("what is in the image ?", text)]), (image,))


def exam(seed: int, image_size: int, per_kind: int) -> list[Example]:
    """Returns `per_kind` single-question examples of each kind about held-out scenes, with `kind` set."""
    by_kind: dict[str, list[Example]] = {kind: [] for kind in QUESTION_KINDS}
    index = 0
    while any(len(examples) < per_kind for examples in by_kind.values()):
        scene = scene_world.draw_scene(seed, index, held_out=True)
        rng = random.Random(f"exam/{seed}/{index}")
        for q in scene_world.questions(scene, rng):
            if len(by_kind[q.kind]) < per_kind:
                turns = (("human", f"<image>\n{q.text}"), ("gpt", q.answer))
                image = scene_world.render_scene(scene, image_size)
                by_kind[q.kind].append(Example(f"exam-{seed}-{index}-{q.kind}", turns, (image,), q.kind))
        index += 1
    return [example for examples in by_kind.values() for example in examples]


def _instruction(name: str, scene: scene_world.Scene, image, rng: random.Random) -> Example:
    kinds, weights = zip(*MIXTURE, strict=True)
    kind = rng.choices(kinds, weights)[0]
    questions = scene_world.questions(scene, rng)
    short_questions = [q for q in questions if q.kind != "reasoning"]
    if kind == "detail":
        pairs = [("describe the image in detail .", scene_world.description(scene))]
    elif kind == "conversation":
        pairs = [(q.text, q.answer) for q in short_questions[:CONVERSATION_TURNS]]
    else:
        pairs = [(q.text, q.answer) for q in [*(q for q in questions if q.kind == "reasoning"), short_questions[0]]]
    return Example(name, _turns(pairs), (image,), kind)


def _turns(pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Returns turns of questions and answers about one image, whose marker precedes the first question."""
    turns = []
    for i, (question, answer) in enumerate(pairs):
        turns += [("human", question if i else f"<image>\n{question}"), ("gpt", answer)]
    return tuple(turns)
