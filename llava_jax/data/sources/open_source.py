"""From a path to the source that reads it; what is there decides, never its name."""

from pathlib import Path

from llava_jax.data.sources.array_record import ArrayRecordSource
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.data.sources.parquet import ParquetSource, is_parquet
from llava_jax.data.sources.scienceqa import DEFAULT, ScienceQA, is_scienceqa
from llava_jax.data.sources.tfds import is_tfds, open_tfds
from llava_jax.errors import ConfigError, DataError


def open_source(
    path: str | Path, images: str | Path = "", is_strict: bool = True, split: str = "", prompt_format: str = ""
):
    """Opens data: what `data build` made, a prepared TensorFlow dataset, Parquet (a file or a folder of them), a folder
    of ScienceQA's, or else LLaVA's JSON.

    images: the folder or zip archive of the images; ArrayRecord and ScienceQA have their own, Parquet may have.
    is_strict: whether a broken row of a JSON raises now, or when it is read.
    split, prompt_format: of ScienceQA, see `scienceqa`; QCM-LEA where no format is given.

    Raises DataError for data that is missing or broken, ConfigError for a JSON without `images`, for ScienceQA without
    a split, and for a split or prompt format of what has none.
    """
    path = Path(path)
    if is_scienceqa(path):
        if not split:
            raise ConfigError(
                f"{path}: of ScienceQA one split is taken. Set data.split to train, val, test or another; where only "
                "paths are taken, first make a JSON of it: python -m llava_jax data scienceqa"
            )
        return ScienceQA(path, split, images or None, prompt_format or DEFAULT)
    if split or prompt_format:
        raise ConfigError(f"{path}: no folder of ScienceQA's; leave out data.split and data.prompt_format")
    if path.is_dir():
        if is_tfds(path):
            return open_tfds(path)
        if any(path.glob("*.array_record")) or (path / "manifest.json").exists():
            return ArrayRecordSource(path)
        if any(path.glob("*.parquet")):
            return ParquetSource(path, images)
        raise DataError(
            f"{path}: a folder without .array_record or .parquet files, and none of TFDS. A JSON is named itself."
        )
    if is_parquet(path):
        return ParquetSource(path, images)
    if not images:
        raise ConfigError(f"{path}: a JSON needs image_folder as well: the folder or zip archive of its images")
    return LlavaJson(path, images, is_strict)
