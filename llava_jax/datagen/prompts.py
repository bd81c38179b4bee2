"""The prompts of the three kinds of instruction data (arXiv 2304.08485, section 3), and rows made of the replies.

A prompt is the system message, some solved examples as earlier turns, then the context. The texts in `shots` are our
own, about images that do not exist; the layout is that of the original's `playground/data/prompts`, which can be used
instead:

    FOLDER/{conversation,detail_description,complex_reasoning}/system_message.txt
                                                               NNN_caps.txt, NNN_conv.txt   (context, reply)
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_jax.datagen.contexts import ImageContext, context_text
from llava_jax.errors import DataError
from llava_jax.output.files import read_text
from llava_jax.text.templates import IMAGE_MARKER

OUR_SHOTS = Path(__file__).parent / "shots"
# kind -> its folder of prompts
KINDS = {"conversation": "conversation", "detail": "detail_description", "reasoning": "complex_reasoning"}
WITH_BOXES = ("detail", "reasoning")  # the original's conversations were made from the captions alone
# The questions of detailed descriptions, of which a row gets one. The original has sixteen others.
DETAIL_QUESTIONS = (
    "What does this image show? Describe it in detail.",
    "Describe the scene as completely as you can.",
    "Please give a thorough description of this picture.",
    "Walk me through everything that can be seen in this photo.",
    "Can you describe the image at length, with its objects and where they are?",
    "Write a detailed account of what this picture shows.",
    "Explain what is in this photo, from the main subject to the small details.",
    "I cannot see the image. Please describe it to me carefully.",
    "Describe the objects in this image and how they are arranged.",
    "Give me a complete picture of this scene in words.",
    "What is happening in this photo? Be as detailed as possible.",
    "Describe the image so that somebody could imagine it without seeing it.",
    "Look closely at this picture and report everything you notice.",
    "Please provide a rich description of the scene in front of you.",
    "Describe the people, objects and surroundings in this image in full.",
    "Tell me in several sentences what this image contains.",
)


@dataclasses.dataclass(frozen=True)
class TeacherPrompt:
    """What precedes the context: the system message, and (context, reply) of the solved examples."""

    system: str
    shots: tuple[tuple[str, str], ...]

    def __post_init__(self):
        turns = [{"role": "system", "content": self.system}]
        for context, reply in self.shots:
            turns += [{"role": "user", "content": context}, {"role": "assistant", "content": reply}]
        object.__setattr__(self, "_turns", turns)  # shared by all requests: copies would need gigabytes

    def messages(self, text: str) -> list[dict[str, str]]:
        """The request about a context."""
        return [*self._turns, {"role": "user", "content": text}]


def read_prompts(folder: Path = OUR_SHOTS, kinds: Sequence[str] = tuple(KINDS)) -> dict[str, TeacherPrompt]:
    """The prompts of some kinds. Line breaks at the end of a file are ignored. Raises DataError for a file that is
    missing, empty or not text."""
    return {kind: _read_prompt(folder / KINDS[kind]) for kind in kinds}


def _read_prompt(folder: Path) -> TeacherPrompt:
    system = _read_part(folder / "system_message.txt")
    shots = []
    for context in sorted(folder.glob("*_caps.txt")):
        reply = context.with_name(context.name.removesuffix("_caps.txt") + "_conv.txt")
        shots.append((_read_part(context), _read_part(reply)))
    return TeacherPrompt(system, tuple(shots))


def _read_part(file: Path) -> str:
    text = read_text(file).rstrip("\r\n")
    if not text.strip():
        raise DataError(f"{file}: is empty. It is a part of every prompt of its kind.")
    return text


def prompts_hash(prompts: Mapping[str, TeacherPrompt]) -> str:
    """The hex SHA-256 of everything that the prompts add to the contexts."""
    texts = {kind: [prompt.system, prompt.shots] for kind, prompt in prompts.items()}
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def request_messages(prompt: TeacherPrompt, context: ImageContext, kind: str) -> list[dict[str, str]]:
    """The request for a row of this kind: a conversation does not show the boxes, the other kinds do."""
    return prompt.messages(context_text(context, kind in WITH_BOXES))


def instruction_row(context: ImageContext, kind: str, pairs: Sequence[tuple[str, str]], seed: int) -> dict:
    """A row of LLaVA's JSON of (question, answer) pairs. `<image>` stands before or after the first question, equally
    often; only seed, id and kind decide."""
    turns = []
    for question, answer in pairs:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    question = turns[0]["value"]
    is_first = random.Random(f"marker/{seed}/{kind}/{context.id}").random() < 0.5
    turns[0]["value"] = f"{IMAGE_MARKER}\n{question}" if is_first else f"{question}\n{IMAGE_MARKER}"
    return {"id": context.id, "image": context.image, "conversations": turns}


def detail_question(context: ImageContext, seed: int) -> str:
    """The question of a detailed description, drawn by seed and id."""
    return random.Random(f"detail/{seed}/{context.id}").choice(DETAIL_QUESTIONS)
