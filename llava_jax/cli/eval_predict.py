"""python -m llava_jax eval scienceqa predict: a model's answers to a split of ScienceQA, in the original's format."""

import hashlib
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llava_jax.errors import ConfigError, harmless
from llava_jax.output.console import progress
from llava_jax.text.templates import find_template

MODEL = Annotated[Path, tyro.conf.arg(metavar="MODEL")]


def predict(
    path: MODEL,
    /,
    *,
    problems: Path,
    out: Path,
    split: str = "test",
    limit: int = 0,
    prompt_format: str = "QCM-LEA",
    image_place: Literal["front", "back"] = "front",
    single_prediction: bool = False,
    two_steps: bool = False,
    missing_images: Literal["error", "skip", "text"] = "error",
    without_images: bool = False,
    image_folder: Path | None = None,
    batch: int = 16,
    max_new_tokens: int = 1024,
    temperature: float = 0.0,
    seed: int = 0,
    tower: Path | None = None,
    base: Path | None = None,
    tokenizer: str | None = None,
    template: str | None = None,
    aspect: Literal["crop", "pad"] | None = None,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    allow_pickle: bool = False,
) -> int:
    """Writes a model's answers, for `score` and the original's tools. Stopped or killed at any point, the same command
    goes on, and ends with the same file.

    Longer prompts are answered first, and the lines are in that order. OUT.settings.json beside OUT says how they were
    made; with other settings, weights or problems OUT is not continued. --batch may change.

    Args:
        path: A LLaVA (a folder of Hugging Face's or of the original's, the workdir of a run), or a language model
            alone (a folder or a GGUF).
        problems: ScienceQA's folder: problems.json, pid_splits.json, images.
        out: JSON Lines of {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}.
        split: Which problems: test, val, or another name in pid_splits.json.
        limit: Only the first so many of the split; 0 for all.
        prompt_format: What stands before the "-" is asked: QCM-LEA, CQM-A, QCML-A ...; or CQM-A_v1.5, the layout of
            v1.5's zero-shot test.
        image_place: Where <image> stands: in front of the text, or behind it, as v0 was asked.
        single_prediction: Asks for a letter alone, with v1.5's sentence.
        two_steps: For models trained on LEPA: reasoning up to "###", then the answer behind it. (The original's answer
            prompter; of template llava_v0 the prompt ends in "###", as there.)
        missing_images: What becomes of a problem whose image is not on disk. error: nothing is asked. skip: it is not
            asked. text: it is asked without.
        without_images: Asks every problem without its image.
        image_folder: Where the images are, a folder or a zip archive, if not in PROBLEMS/images.
        batch: Problems that are answered at a time, over all devices.
        max_new_tokens: An answer's length at most; of its reasoning with --two-steps.
        temperature: 0 always takes the likeliest token. (The original's is 0.2, and 0 for v1.5.)
        seed: The same seed draws the same answers.
        tower: The folder of the CLIP tower, for a LLaVA that lacks its own.
        base: The model that a LoRA folder, a projector or delta weights were made from.
        tokenizer: Where the tokenizer is, if not with the model.
        template: The conversation template. Default: a run's own, chatml if the model's chat template is, else
            vicuna_v1. The original's ScienceQA models want llava_v1, its v0 llava_v0.
        aspect: What becomes of images that are not square. Default: what the model's files say.
        dtype: Of weights and arithmetic.
        allow_pickle: Reads weights in .bin files too. A pickle can hold any program: only from those you trust.
    """
    if limit < 0 or batch < 1:
        raise ConfigError(f"--limit {limit} must be at least 0, --batch {batch} at least 1")
    find_template(template or "vicuna_v1")
    from llava_jax.api.load import load
    from llava_jax.data.sources.scienceqa import ScienceQA
    from llava_jax.evaluation.answers_file import continued
    from llava_jax.evaluation.scienceqa import predict as asking
    from llava_jax.inference.engine import Settings

    manner = asking.Manner(two_steps, max_new_tokens, temperature, seed)
    Settings((), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)  # says what is out of range
    source = ScienceQA(problems, split, image_folder, prompt_format)
    asked, missing = asking.ask(source, limit, image_place, single_prediction, missing_images, without_images)
    known = dict(
        model_id=path.resolve().name, split=split, limit=limit, prompt_format=prompt_format, image_place=image_place,
        single_prediction=single_prediction, two_steps=two_steps, missing_images=missing_images,
        without_images=without_images, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, dtype=dtype,
    )  # fmt: skip
    with continued(out) as answers:
        answers.check(known)  # before the weights are read, which takes its time
        _check_one_process()
        model = load(
            path, dtype=dtype, tower=tower, base=base, tokenizer=tokenizer, template=template, aspect=aspect,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        if not model.config.vision and any(one.image for one in asked):
            raise ConfigError(f"{path} is a language model alone; ask it with --without-images")
        rows = asking.longest_first(model, asked, two_steps)
        settings = known | {"template": model.template, "aspect": model.aspect}
        settings |= {"weights": asking.fingerprint(model.params), "prompts": asking.digest(rows)}
        answers.begin(settings, [one.pid for one, _ in rows])
        done, begun = answers.count, time.monotonic()
        _say(_about(len(rows), done, sum(one.image is not None for one in asked), missing, missing_images))
        try:
            new = asking.predict(model, rows, source.images, manner, batch, done)
            with progress("answered", total=len(rows), begun=done) as tell:
                for part in new:
                    answers.write([_line(one, text, settings) for one, text in part])
                    tell(answers.count)
        except KeyboardInterrupt:
            _say(f"stopped after {answers.count:,} of {len(rows):,}; the same command continues {out}")
            return 130
    took = time.monotonic() - begun
    _say(f"{out}: {answers.count:,} answers, {answers.count - done:,} of them new ({took:.0f} s)")
    return 0


def _check_one_process() -> None:
    import jax

    if jax.process_count() > 1:
        raise ConfigError(f"predict runs in one process, on all its devices; this is one of {jax.process_count()}")


def _line(asked, text: str, settings: dict) -> dict:
    made_of = f"{sorted(settings.items())} {asked.pid}"
    return {
        "question_id": asked.pid,
        "prompt": asked.prompt,
        "text": text,
        "answer_id": hashlib.sha256(made_of.encode()).hexdigest()[:22],
        "model_id": settings["model_id"],
        "metadata": {},
    }


def _about(count: int, done: int, shown: int, missing: list[str], policy: str) -> str:
    said = f"{count:,} problems, {shown:,} with their image"
    if missing:
        what = "not asked" if policy == "skip" else "asked without"
        said += f"; the images of {len(missing):,} are missing, they are {what}; the first: {missing[0]}"
    return said + (f"; {done:,} are answered already" if done else "")


def _say(text: str) -> None:
    print(harmless(text), flush=True)
