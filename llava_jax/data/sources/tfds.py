"""A prepared TensorFlow dataset with images and texts. Needs an extra: pip install 'llava_jax[tfds]'.

The folder is one prepared by TFDS with `file_format="array_record"`, such as
~/tensorflow_datasets/coco_captions/2014/1.1.0; its split `train` is read. A record needs the feature `image` and a
text: `conversations` as in LLaVA's JSON, or `caption`, or `captions` with `text` (the first of several). A caption
becomes the answer to a brief instruction, as in `data captions`. Nothing is downloaded. TensorFlow is not needed.
"""

from pathlib import Path

import numpy as np

from llava_jax.data.example import Example, id_hash
from llava_jax.data.sources.caption_pairs import caption_row
from llava_jax.data.sources.llava_row import parse_row
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.json_text import parse_json


def is_tfds(folder: Path) -> bool:
    return (folder / "dataset_info.json").exists() and (folder / "features.json").exists()


def open_tfds(folder: Path) -> "TfdsSource":
    """Opens the folder. Raises ConfigError if the extra is not installed, DataError if the folder cannot be read."""
    for name in _class_names(folder / "features.json"):
        if not name.startswith("tensorflow_datasets."):  # TFDS would import any class named there
            raise DataError(f"{folder}: features.json names {name!r}; only features of TFDS itself are allowed.")
    try:
        import tensorflow_datasets as tfds
    except ImportError as fault:
        raise ConfigError(f"{folder}: TFDS is needed ({fault}): pip install 'llava_jax[tfds]'") from None
    try:
        builder = tfds.builder_from_directory(folder)
        decoders = {"image": tfds.decode.SkipDecoding()}  # file contents, for the limits of `load_image`
        return TfdsSource(builder.as_data_source(split="train", decoders=decoders), str(folder))
    except Exception as fault:  # TFDS raises exceptions of any kind
        line = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise DataError(f"{folder}: TFDS cannot read it ({line[:200]}). Prepare it as array_record.") from None


class TfdsSource:
    """The records of `tfds.data_source` (with `len` and `[index]`); `name` is used in ids and error messages."""

    def __init__(self, records, name: str):
        self.records, self.name = records, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        where = f"{self.name}: record {index}"
        try:
            record = self.records[index]
            image = record["image"]
        except KeyError:
            raise DataError(f"{where}: has no feature `image`; it has {', '.join(sorted(record))}.") from None
        except (RuntimeError, ValueError, OSError) as fault:
            raise DataError(f"{where}: cannot be read ({str(fault)[:120]}). Prepare the dataset again.") from None
        row = {"id": f"{Path(self.name).name}-{index}", "image": "image"}
        if "conversations" in record:
            row["conversations"] = _to_python(record["conversations"])
            if isinstance(row["conversations"], dict):  # TFDS turns a list of dicts into a dict of lists
                turns = zip(row["conversations"].get("from", ()), row["conversations"].get("value", ()), strict=False)
                row["conversations"] = [{"from": role, "value": text} for role, text in turns]
        else:
            row["conversations"] = caption_row(row["id"], _caption(record, where), 0)["conversations"]
        _, turns, _ = parse_row(row, where)
        return Example(row["id"], turns, (image if isinstance(image, bytes) else bytes(image),))

    def id_hashes(self) -> np.ndarray:
        """Returns int64[n]; ids are made from the index, so no record is read."""
        return np.array([id_hash(f"{Path(self.name).name}-{i}") for i in range(len(self))], np.int64)


def _caption(record: dict, where: str) -> str:
    text = _to_python(record.get("caption", record.get("captions")))
    if isinstance(text, list) and text and isinstance(text[0], dict):
        text = text[0]
    text = text.get("text") if isinstance(text, dict) else text
    text = text[0] if isinstance(text, list) and text else text
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: no text in conversations, caption or captions; it has {', '.join(sorted(record))}.")
    return text.strip()


def _to_python(value):
    """Converts numpy arrays and bytes to lists and strings."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _to_python(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_python(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _class_names(file: Path) -> list[str]:
    """Returns all class names in a features.json."""
    try:
        pending, names = [parse_json(file.read_bytes())], []
    except (OSError, ValueError):
        raise DataError(f"{file}: cannot be read. Prepare the dataset again.") from None
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            keys = ("pythonClassName", "python_class_name", "type")  # all keys that TFDS reads
            names += [value[key] for key in keys if isinstance(value.get(key), str)]
        pending += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return names
