"""Opens a path as a source of examples; its content decides the format, never its name."""

from pathlib import Path

from llava_jax.data.sources.array_record import ArrayRecordSource
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.data.sources.parquet import ParquetSource, is_parquet
from llava_jax.data.sources.scienceqa import DEFAULT, ScienceQA, is_scienceqa
from llava_jax.data.sources.tfds import is_tfds, open_tfds
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import local_path


def open_source(
    path: str | Path, images: str | Path = "", is_strict: bool = True, split: str = "", prompt_format: str = ""
):
    """Opens the output of `data build`, a prepared TensorFlow dataset, Parquet (a file or a folder of files), a
    ScienceQA folder, or else LLaVA's JSON or JSON Lines.

    images: the folder or zip archive of the images; ArrayRecord and ScienceQA have their own, Parquet may have.
    is_strict: whether a broken row of a JSON raises now or when it is read.
    split, prompt_format: for ScienceQA only, see `scienceqa`; the default format is QCM-LEA.

    Raises DataError for missing or broken data, ConfigError for URLs, a JSON that names images without `images`,
    ScienceQA without a split, and a split or prompt format for other data.
    """
    path = local_path(path, "the data")
    images = local_path(images, "the image folder") if images else ""
    if is_scienceqa(path):
        if not split:
            raise ConfigError(
                f"{path}: ScienceQA needs a split. Set data.split to train, val, test or another; for commands without "
                "a split, convert it to a JSON first: python -m llava_jax data scienceqa"
            )
        return ScienceQA(path, split, images or None, prompt_format or DEFAULT)
    if split or prompt_format:
        raise ConfigError(f"{path}: not a ScienceQA folder; leave out data.split and data.prompt_format")
    if path.is_dir():
        if is_tfds(path):
            return open_tfds(path)
        if any(path.glob("*.array_record")) or (path / "manifest.json").exists():
            return ArrayRecordSource(path)
        if any(path.glob("*.parquet")):
            return ParquetSource(path, images)
        raise DataError(
            f"{path}: a folder without .array_record or .parquet files, and not of TFDS. For a JSON, pass the file."
        )
    if is_parquet(path):
        return ParquetSource(path, images)
    return LlavaJson(path, images, is_strict)
