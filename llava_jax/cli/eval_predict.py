"""python -m llava_jax eval scienceqa predict: a model's answers to a split of ScienceQA, in the original's format."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.cli.flags import Flat, GenerationFlags, LoadFlags
from llava_jax.evaluation.questions import PredictOptions
from llava_jax.text.templates import find_template

MODEL = Annotated[Path, tyro.conf.arg(metavar="MODEL")]
GENERATION = GenerationFlags(max_new_tokens=1024)


def predict(
    path: MODEL,
    /,
    *,
    problems: Path,
    out: Path,
    split: str = "test",
    prompt_format: str = "QCM-LEA",
    image_place: Literal["front", "back"] = "front",
    single_prediction: bool = False,
    two_steps: bool = False,
    image_folder: Path | None = None,
    run: Flat[PredictOptions],
    generation: Flat[GenerationFlags] = GENERATION,
    loading: Flat[LoadFlags],
) -> int:
    """Writes a model's answers, for `score` and the original's tools. Stopped or killed at any point, the same command
    resumes, and ends with the same file.

    The longest prompts are answered first, and the lines are in that order. OUT.settings.json beside OUT holds the
    settings that made it; with other settings, weights or problems OUT is not continued. --batch may change.

    Args:
        path: A LLaVA (a folder of Hugging Face's or of the original's, the workdir of a run), or a language model
            alone (a folder or a GGUF).
        problems: ScienceQA's folder: problems.json, pid_splits.json, images.
        out: JSON Lines of {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}.
        split: Which problems: test, val, or another name in pid_splits.json.
        prompt_format: What stands before the "-" is asked: QCM-LEA, CQM-A, QCML-A ...; or CQM-A_v1.5, the layout of
            v1.5's zero-shot test.
        image_place: Where <image> goes: before the text, or after it, as v0 was asked.
        single_prediction: Asks for a letter alone, with v1.5's sentence.
        two_steps: For models trained on LEPA: generates reasoning up to "###", then the answer after it. (The
            original's answer prompter; of template llava_v0 the prompt ends in "###", as there.)
        image_folder: Where the images are, a folder or a zip archive, if not in PROBLEMS/images.
    """
    find_template(loading.template or "vicuna_v1")
    from llava_jax.api.load import load
    from llava_jax.data.sources.scienceqa import ScienceQA
    from llava_jax.evaluation.runner import predict_answers
    from llava_jax.evaluation.scienceqa import two_steps as prompter
    from llava_jax.evaluation.scienceqa.task import ScienceQATask
    from llava_jax.inference.engine import GenerationConfig

    GenerationConfig((), **generation.options())  # raises for a value out of range
    task = ScienceQATask(ScienceQA(problems, split, image_folder, prompt_format), image_place, single_prediction)
    settings = dict(
        model_id=path.resolve().name, split=split, limit=run.limit, prompt_format=prompt_format,
        image_place=image_place, single_prediction=single_prediction, two_steps=two_steps,
        missing_images=run.missing_images, without_images=run.without_images, **generation.options(),
        dtype=loading.dtype,
    )  # fmt: skip
    hooks = dict(encode=prompter.encode_step, generate=prompter.generate_two_steps) if two_steps else {}
    predict_answers(task, out, lambda: load(path, **loading.options()), settings, run, generation.options(), **hooks)
    return 0
