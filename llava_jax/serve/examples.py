"""Examples of the chat page: synthetic scenes that ship with it, and the held-out samples of a run."""

import io
import itertools
from importlib import resources
from pathlib import Path

from llava_jax.checkpoint.native.workdir_model import is_workdir_model
from llava_jax.config.build import build_dataclass
from llava_jax.config.schema import Config
from llava_jax.errors import ConfigError, DataError
from llava_jax.images.thumbnail import thumbnail
from llava_jax.output.console import log
from llava_jax.output.files import read_object
from llava_jax.train.dataset import open_held_out

SCENES = Path(str(resources.files("llava_jax") / "serve" / "page" / "examples"))  # examples.json and its images
SIDE = 336  # pixels, of a scene, and the maximum of another image
TRIES = 8  # samples that are read for each example


def held_out_examples(workdir: Path, count: int) -> list[tuple[bytes, str]]:
    """Returns (PNG file, first question) of up to `count` held-out samples of a run's last stage that have one image.

    The data are where the run's config names them, relative to the current folder, and a large JSON takes seconds. No
    examples, with a note on standard error, if they cannot be opened or the run holds nothing out; of a model that is
    not a workdir, no examples. Samples without a readable image are skipped.
    """
    if not is_workdir_model(workdir):
        return []
    try:
        values = read_object(workdir / "config.json", "what the run is")
        if "stages" not in values:  # a converted model
            return []
        config = build_dataclass(Config, values, "config")
        source = open_held_out(config.stages[config.run[-1]], config.seed, SIDE)
        if source is None:
            log(f"no examples on the page: the run in {workdir} held no samples out (data.held_out)", to_stderr=True)
            return []
        samples = (_example(source, index) for index in range(min(len(source), TRIES * count)))
        return list(itertools.islice(filter(None, samples), count))
    except (DataError, ConfigError, LookupError, OSError) as e:
        log(f"no examples on the page: the held-out samples of {workdir} cannot be read ({e})", to_stderr=True)
        return []


def _example(source, index: int) -> tuple[bytes, str] | None:
    """None for a sample that cannot be read, or that has no image or several."""
    try:
        sample = source[index]
    except DataError:
        return None
    picture = thumbnail(sample.images[0], sample.id, SIDE) if len(sample.images) == 1 else None
    question = sample.opening[-1][1].replace("<image>", "").strip()
    if picture is None or not question:
        return None
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue(), question
