"""The architecture of a run: that of the names in `model`, or of the files in `load`; both must agree.

Shapes alone do not define a model: rotary base and scaling, epsilons, head counts, activations and the layer of the
features are in the files' config. A run that computed with others would train on wrong features without an error.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from llava_jax.checkpoint.architecture_json import MODULES
from llava_jax.checkpoint.external import ExternalCheckpoint, folder_of
from llava_jax.checkpoint.gguf_files.file import is_gguf
from llava_jax.checkpoint.huggingface.image_settings import image_settings
from llava_jax.checkpoint.llava.config import read_original
from llava_jax.checkpoint.module_file import module_architecture, resolve
from llava_jax.checkpoint.native.run_inputs import has_checkpoint, own_architecture
from llava_jax.checkpoint.native.workdir_model import WorkdirModel
from llava_jax.checkpoint.open_checkpoint import open_parameters
from llava_jax.config.architectures import LlamaConfig, ModelConfig, VisionConfig
from llava_jax.config.build import flatten
from llava_jax.config.resolve import FOLDER, model_config, named_tower
from llava_jax.config.schema import Config, Weights
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import local_path

FEATURES = ("select_layer", "select_feature")  # settings of `model` even with `folder`: a lone tower names none
# A larger table is padding (llava-hf has 32,064 rows for 32,000 tokens): every row is kept, and those beyond the
# tokenizer are never targets. Positions limit the length of rows, and change no value below the limit.
FROM_FILES = ("vocab_size", "max_positions")


@dataclasses.dataclass(frozen=True)
class LoadedModule:
    """What the files in `load.*` record. `name`: the setting and its value. A missing module is None, and `features`
    are None unless the files are a whole LLaVA: (select_layer, select_feature)."""

    name: str
    vision: VisionConfig | None
    llm: LlamaConfig | None
    projector: str | None
    features: tuple[int, str] | None


def run_model(config: Config, platform: str, workdir: Path, log: Callable[[str], None]) -> ModelConfig:
    """Returns the architecture of a run, see `resolve_model`. A run that resumes keeps that of its workdir, and its
    files in `load.*` may be gone. Raises DataError for a broken workdir, and as `resolve_model` does."""
    if not has_checkpoint(workdir):
        return resolve_model(config, platform, log)
    if recorded := own_architecture(workdir):
        return model_config(config.model, platform, recorded.vision, recorded.llm)
    return planned_model(config, platform)  # of an earlier version, which trained exactly the named architectures


def resolve_model(
    config: Config, platform: str | None = None, log: Callable[[str], None] = lambda line: None
) -> ModelConfig:
    """Returns the architecture that a run trains, and the attention kernel for `platform` (see `model_config`).

    Reads the config of the files in `load.*` but no weights. A tower named `folder` has their architecture. Any other
    must have the architecture of its name, with the vocabulary and the positions of the files. log: called with a line
    for each tower that is not the named one.

    Raises ConfigError, naming every field that differs with both values, and for rows longer than the positions of the
    files; DataError for files that are missing or broken.
    """
    opened: dict[Path, ExternalCheckpoint | WorkdirModel] = {}  # opening a workdir verifies its hashes
    loaded = {module: _read(config, module, opened) for module in MODULES}
    vision, llm = (_tower(config, module, loaded[module], log) for module in ("vision", "llm"))
    for module in ("vision", "projector"):
        _check_features(config, loaded[module])
    if (source := loaded["projector"]) and source.projector != config.model.projector:
        raise ConfigError(
            f"{source.name} holds the projector {source.projector}, model.projector is {config.model.projector}; set "
            f"--config.model.projector={source.projector}"
        )
    if loaded["llm"]:
        _check_lengths(config, llm, loaded["llm"].name)
    return model_config(config.model, platform, vision, llm)


def planned_model(config: Config, platform: str) -> ModelConfig:
    """Returns `resolve_model(...)` for a run whose files may be missing: only those of a tower named `folder` are read.
    Raises ConfigError and DataError as `resolve_model` does."""
    needed = {
        module: path if getattr(config.model, module, None) == FOLDER else ""
        for module, path in dataclasses.asdict(config.load).items()
    }
    return resolve_model(dataclasses.replace(config, load=Weights(**needed)), platform)


def _read(config: Config, module: str, opened: dict) -> LoadedModule | None:
    """Returns what the files in `load.<module>` record, None without files or in a module file that records nothing."""
    path, setting = getattr(config.load, module), f"load.{module}"
    if not path:
        return None
    file, name = resolve(str(local_path(path, setting))), f"{setting}={path}"
    if not file.exists():
        raise DataError(f"weights file {file} (for `{module}`) does not exist")
    if file.is_file() and not is_gguf(file):
        source = module_architecture(file, module)
        if source is None and getattr(config.model, module) == FOLDER:
            raise ConfigError(
                f"{name} was saved without its architecture; set model.{module} to the name that it was trained with"
            )
        return source and LoadedModule(name, source.vision, source.llm, source.projector, _features(source.vision))
    source = opened[file] = opened.get(file) or open_parameters(file)
    if isinstance(source, ExternalCheckpoint):
        if module == "vision":  # raises for another normalization, size or resampling than ours
            folder = folder_of(file)
            image_settings(folder, source.config_json, str(folder / "config.json"), source.vision)
        loaded = LoadedModule(name, source.vision, source.llm, source.projector, _features_of_folder(source))
    else:
        c = source.config
        loaded = LoadedModule(name, c.vision, c.llm, c.projector, _features(c.vision))
    if getattr(loaded, module) is None:
        raise DataError(f"{name} has no {module}")
    return loaded


def _features(vision: VisionConfig | None) -> tuple[int, str] | None:
    return vision and (vision.select_layer, vision.select_feature)


def _features_of_folder(source: ExternalCheckpoint) -> tuple[int, str] | None:
    if source.projector is None:  # a tower alone: its reader fills in LLaVA's defaults
        return None
    if source.vision:
        return _features(source.vision)
    *_, layer, feature = read_original(source.config_json, str(source.path))  # without its tower
    return layer, feature


def _tower(config: Config, module: str, loaded: LoadedModule | None, log) -> VisionConfig | LlamaConfig | None:
    named, stored = named_tower(config.model, module), loaded and getattr(loaded, module)
    if stored is None:
        return named
    if named is None:
        shown = (f"{key} {value}" for key, value in flatten(stored).items() if key not in FEATURES)
        log(f"{module}: the architecture of {loaded.name}: {', '.join(shown)}")
        return stored
    name = f"model.{module}={getattr(config.model, module)}"
    _check_equal(loaded.name, name, module, named, stored)
    changes = {key: getattr(stored, key) for key in FROM_FILES if hasattr(stored, key)}
    for key, value in changes.items():
        if value != getattr(named, key):
            log(f"{module}: {key} {value}, as in {loaded.name}; {name} has {getattr(named, key)}")
    return dataclasses.replace(named, **changes)


def _check_equal(source: str, name: str, module: str, named, stored) -> None:
    """Raises ConfigError unless two towers agree. A smaller vocabulary differs too: tokens would have no row."""
    pairs = {f.name: (getattr(stored, f.name), getattr(named, f.name)) for f in dataclasses.fields(named)}
    differences = {
        key: pair for key, pair in pairs.items() if key not in (*FEATURES, *FROM_FILES) and not _is_equal(*pair)
    }
    if module == "llm" and stored.vocab_size < named.vocab_size:
        differences["vocab_size"] = pairs["vocab_size"]
    if differences:
        listed = "; ".join(f"{key} is {_shown(a)}, not {_shown(b)}" for key, (a, b) in differences.items())
        raise ConfigError(
            f"{source} is not the architecture {name}: {listed}. To train the architecture of the files, set "
            f"--config.model.{module}={FOLDER}"
        )


def _is_equal(a, b) -> bool:
    if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
        return all(_is_equal(x, y) for x, y in zip(flatten(a).values(), flatten(b).values(), strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)  # converters write 1e-5 as float32: 9.999999747378752e-06
    return a == b


def _shown(value) -> str:
    return " ".join(f"{k} {v}" for k, v in flatten(value).items()) if dataclasses.is_dataclass(value) else str(value)


def _check_features(config: Config, loaded: LoadedModule | None) -> None:
    if not loaded or not loaded.features:
        return
    for key, value in zip(FEATURES, loaded.features, strict=True):
        if getattr(config.model, key) != value:
            raise ConfigError(
                f"{loaded.name} was trained with {key} {value}, model.{key} is {getattr(config.model, key)}; set "
                f"--config.model.{key}={value}"
            )


def _check_lengths(config: Config, llm: LlamaConfig, source: str) -> None:
    """Raises ConfigError for rows beyond the positions, where a sliding window or another scaling would begin."""
    limit, scaling = llm.max_positions, llm.rope_scaling
    if scaling and scaling.kind != "llama3":  # whose max_positions are those after scaling
        before = scaling.original_max_positions if scaling.kind == "yarn" else limit
        limit = max(limit, int(before * scaling.factor))
    for name in config.run:
        if (length := config.stages[name].data.length) > limit:
            raise ConfigError(
                f"stages.{name}.data.length={length} exceeds the {limit} positions of {source}; shorten the rows"
            )
