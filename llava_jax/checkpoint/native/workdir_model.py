"""Opens native folders as models: workdirs of runs, and folders that `save_workdir_model` writes.

Both have a config.json, checkpoints/<step>/ and tokenizer/. A run's architecture is in architecture.json, and its
template and image settings are in the record of each checkpoint; a saved model has all of these in config.json. In runs
of older versions, the names in config.json are all there is.
"""

import dataclasses
import json
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from llava_jax.checkpoint.native.run_inputs import CHECKPOINTS, TOKENIZER, own_architecture, own_tokenizer
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.checkpoint.new_folder import check_new, new_folder
from llava_jax.checkpoint.tokenizer import copy_tokenizer
from llava_jax.config.architectures import ModelConfig
from llava_jax.config.build import build_dataclass
from llava_jax.config.resolve import model_config
from llava_jax.config.schema import Config
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.console import log
from llava_jax.output.files import read_object
from llava_jax.text.templates import DEFAULT_TEMPLATE
from llava_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class WorkdirModel:
    """An opened model. `tokenizer`: see `open_tokenizer`; `has_tokenizer`: whether it is in the folder.
    `image_token_id`: None if the folder does not record it."""

    path: Path
    step: int
    config: ModelConfig
    tokenizer: str
    template: str
    aspect: str
    image_token_id: int | None
    wraps_images: bool
    has_tokenizer: bool = True

    def model(self, dtype: str) -> ModelConfig:
        """Returns the config of the whole model that computes in `dtype`."""
        plain = dict(remat="none", unroll=False, attention="xla")
        return dataclasses.replace(self.config, dtype=dtype, feature_dtype=dtype, **plain)

    def dtypes(self, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, str]:
        """Returns parameter path -> dtype in the checkpoint, float32 if it is missing."""
        stored = self._with_store(lambda store: store.param_metadata(self.step))
        return {path: stored[path][1] if path in stored else "float32" for path in shapes}

    def load(self, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Restores the parameters of `like` (path -> shape, dtype, sharding), of some modules or of all. Raises
        DataError if their paths or shapes differ from the checkpoint's."""
        modules = {path.split("/")[0] for path in like}
        metadata = self._with_store(lambda store: store.param_metadata(self.step))
        stored = {path: value for path, value in metadata.items() if path.split("/")[0] in modules}
        missing, extra = sorted(like.keys() - stored.keys()), sorted(stored.keys() - like.keys())
        if missing or extra:
            raise DataError(
                f"checkpoint {self.step} of {self.path} does not fit its config: missing {missing[:3] or 'none'}, "
                f"unexpected {extra[:3] or 'none'}"
            )
        for path, spec in like.items():
            if stored[path][2] != spec.shape:
                raise DataError(
                    f"checkpoint {self.step} of {self.path}: {path} has shape {stored[path][2]}, the config expects "
                    f"{spec.shape}"
                )
        return self._with_store(lambda store: store.restore_params(self.step, like))

    def _with_store(self, read):
        store = CheckpointStore(self.path / CHECKPOINTS, keep=1)
        try:
            return read(store)
        finally:
            store.close()


def is_workdir_model(path: Path) -> bool:
    """Returns whether the folder is a run's workdir or written by `save_workdir_model`."""
    return (path / CHECKPOINTS).is_dir() and (path / "config.json").is_file()


def open_workdir_model(path: Path) -> WorkdirModel:
    """Opens the newest intact checkpoint of a folder. Logs newer damaged ones to standard error. Raises DataError for a
    folder without an intact checkpoint, and for a config.json that is broken or of another version."""
    file = path / "config.json"
    values = read_object(file, "what the run is")
    store = CheckpointStore(path / CHECKPOINTS, keep=1)
    try:
        checkpoint = store.latest_intact()
        for note in checkpoint.notes:
            log(note, to_stderr=True)
        step = checkpoint.step
        if step is None:
            raise DataError(f"{path / CHECKPOINTS} holds no complete checkpoint")
        record = store.read_run(step)
    finally:
        store.close()
    try:
        if isinstance(values["model"]["vision"], dict):
            config = build_dataclass(ModelConfig, values["model"], "model")
            template, aspect, image_token_id = (values[key] for key in ("template", "aspect", "image_token_id"))
            wraps_images = values.get("wraps_images", False)  # missing in older folders
            return WorkdirModel(
                path, step, config, str(path / TOKENIZER), template, aspect, image_token_id, wraps_images
            )
        # Not that of config.json: a run that resumed with other settings may not have saved a checkpoint with them yet.
        run = build_dataclass(Config, record.get("config", values), "config")
        data = run.stages[record["stage"]].data
        config, own = own_architecture(path) or model_config(run.model), own_tokenizer(path)
        tokenizer, template = str(own or run.tokenizer), data.template or DEFAULT_TEMPLATE
        return WorkdirModel(path, step, config, tokenizer, template, data.aspect, None, False, has_tokenizer=bool(own))
    except (KeyError, TypeError, ConfigError) as e:
        raise DataError(f"{file} is not a config of a run or model of this version: {e}") from None


def save_workdir_model(
    folder: Path, params: dict[str, jax.Array], config: ModelConfig, tokenizer: Tokenizer, tokenizer_path: Path | None,
    template: str, aspect: str, image_token_id: int, wraps_images: bool,
) -> None:  # fmt: skip
    """Writes a whole model into a new folder in the layout of a workdir, each parameter in its own dtype, sharded.

    tokenizer_path: the tokenizer's files to copy; None: they are generated. Every process must call it. The folder
    appears when it is complete. Raises DataError if it exists or cannot be written.
    """
    check_new(folder)
    config_json = dict(
        model=dataclasses.asdict(config), template=template, aspect=aspect, image_token_id=image_token_id,
        wraps_images=wraps_images,
    )  # fmt: skip
    with new_folder(folder) as partial:
        if jax.process_index() == 0:
            (partial / TOKENIZER).mkdir()
            copy_tokenizer(partial / TOKENIZER, tokenizer, tokenizer_path, config.llm.max_positions)
            (partial / "config.json").write_text(json.dumps(config_json, indent=1), encoding="utf-8")
        multihost_utils.sync_global_devices("the folder is there")
        store = CheckpointStore(partial / CHECKPOINTS, keep=1, concurrent_bytes=max(x.nbytes for x in params.values()))
        try:
            store.save(0, {"frozen": params, "trainable": {}}, {}, {})
            store.wait()
        finally:
            store.close()
