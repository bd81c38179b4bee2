"""python -m llava_jax eval scienceqa predict: answers a split of ScienceQA, in the original's file format."""

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
    """Answers the problems of a split with a model, for `score` and the original's tools.

    After a stop or kill, run the same command again: it resumes, and the result is byte-equal. The order is longest
    prompt first. OUT.settings.json records the settings; with other settings, weights or problems the command refuses
    to continue OUT. --batch may change.

    Args:
        path: A LLaVA (a Hugging Face or original folder, or a run's workdir), or a language model (a folder or GGUF).
        problems: The ScienceQA folder: problems.json, pid_splits.json, images; or Parquet files of the Hub.
        out: The file to write: JSON Lines of {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}.
        split: The split: test, val, or another name in pid_splits.json.
        prompt_format: INPUT-OUTPUT, e.g. QCM-LEA, CQM-A, or CQM-A_v1.5 (v1.5's zero-shot test). The prompt is INPUT.
        image_place: The place of <image>: front (before the text) or back (after it, as for v0).
        single_prediction: Adds v1.5's sentence that asks for a letter alone.
        two_steps: Generates reasoning up to "###", then the answer: the original's answer prompter, for LEPA models.
        image_folder: The folder or zip archive of the images. Default: PROBLEMS/images.
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
