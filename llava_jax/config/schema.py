"""What a run is: frozen dataclasses with every default in one place, and the way from an ml_collections ConfigDict.

A file under `configs/` starts from `defaults()` (a ConfigDict), adds stages with `stage()` and changes values; flags
such as `--config.stages.stage1.batch=64` change them once more; `from_config_dict` turns the result into a frozen
`Config` and refuses unknown keys (with a suggestion) and wrong types. No ConfigDict travels further than `main`.
"""

import dataclasses
import difflib
import math
import re
import types
import typing

from ml_collections import ConfigDict

from llava_jax.config import architectures
from llava_jax.errors import ConfigError

AT_LEAST_ONE = (
    "log_every", "checkpoint.every", "checkpoint.keep", "guard.window", "batch", "accumulation", "epochs",
    "loss_chunks", "data.length", "eval.samples", "eval.max_new_tokens",
)  # fmt: skip
KERNELS = {"tpu": "splash", "cuda": "cudnn"}  # by platform, see models/kernels.py; others have the plain code
ANY_SIGN = ("model.select_layer", "mesh.data", "mesh.fsdp", "mesh.tensor")  # every other number is at least zero


@dataclasses.dataclass(frozen=True)
class Model:
    """The named towers (`architectures.VISION`, `architectures.LLM`) and how they compute."""

    vision: str = "clip_l14_224"
    llm: str = "vicuna_7b_v1.3"
    projector: str = "linear"  # linear | mlpNx_gelu
    select_layer: int = -2  # hidden state of the ViT that becomes the features (paper, section 4.1)
    select_feature: str = "patch"  # patch | cls_patch
    dtype: str = "bfloat16"  # float32 | bfloat16: compute dtype; trained weights are always float32
    feature_dtype: str = "bfloat16"  # compute dtype of the vision tower
    remat: str = "full"  # a name in architectures.REMAT: what the backward pass keeps instead of recomputing it
    unroll: bool = False  # layers as straight-line code instead of a loop: faster on CPU, longer to compile
    attention: str = "auto"  # auto (by device and dtype) | xla (plain) | splash (TPU) | cudnn (NVIDIA)


@dataclasses.dataclass(frozen=True)
class Weights:
    """safetensors files by module; empty means none. `load`: a run's initial values; `save`: written after a stage."""

    vision: str = ""
    projector: str = ""
    llm: str = ""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh axes; one may be -1 and takes the devices that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every: int = 1000  # steps; the end of a stage and SIGTERM always save
    keep: int = 2  # newest checkpoints kept


@dataclasses.dataclass(frozen=True)
class Guard:
    """What becomes of a step that would do harm. One whose loss or gradient is not finite is always skipped."""

    in_a_row: int = 10  # skipped steps that a run survives; one more ends it with exit code 3
    spike: float = 0.0  # a loss above this many times the median of the last `window` is a spike; 0: nothing is
    on_spike: str = "skip"  # skip | warn
    window: int = 64  # losses; before a stage has as many, nothing is a spike


@dataclasses.dataclass(frozen=True)
class Data:
    source: str = "files"  # files | scenes
    path: str = ""  # files: LLaVA's json, or a folder: of `data build`, Parquet, TFDS or ScienceQA
    image_folder: str = ""  # files: the root of a json's image paths, or a zip archive with them
    samples: int = 0  # files: how many the published data has; `plan` counts steps by it, a run counts what is there
    mixture: tuple[tuple[str, str, float], ...] = ()  # files: (path, image_folder, weight) of several, instead of path
    split: str = ""  # ScienceQA: train, val, test, or another name in pid_splits.json
    prompt_format: str = ""  # ScienceQA: see data/scienceqa_prompts.py; QCM-LEA where it is empty
    scenes: str = "caption"  # scenes: caption | study | tell | instruct
    template: str = "vicuna_v1"
    aspect: str = "crop"  # crop (CLIP's processor) | pad (LLaVA v1.5)
    length: int = 2048  # tokens per row, image patches included
    max_images: int = 1  # image slots per row; 0 for text-only data
    overlong: str = "truncate"  # truncate | error
    packing: str = "none"  # none: one sample a row | pack: as many as fit, `length` tokens and `max_images` images
    lengths: tuple[int, ...] = ()  # shorter row lengths beside `length`, for batches of short samples (without packing)
    bad: str = "replace"  # a sample that cannot be read: replace (by another one; counted and listed) | error
    bad_ceiling: float = 0.001  # share of the stage's samples that may be replaced before the run stops
    held_out: float = 0.0  # files: share of samples kept out of training, chosen by a hash of their id
    threads: int = 16  # decode and tokenise ahead of the step
    workers: int = 0  # processes that do it, each on as many threads; 0: threads of the training process


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with a linear warm-up and a cosine to zero, LLaVA's settings (Hugging Face's defaults, no decay)."""

    warmup_ratio: float = 0.03
    schedule: str = "cosine"  # cosine | constant (after the warm-up)
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    first_moment: str = "float32"  # float32 | bfloat16: saves 2 bytes for each trained weight
    weight_decay: float = 0.0  # kernels and embeddings only, never scales and biases
    clip: float = 1.0  # global norm of the trained gradients; 0 for none


@dataclasses.dataclass(frozen=True)
class Eval:
    before: bool = False  # also before the stage's first step
    every: int = 0  # steps between evaluations; 0: only after the stage's last step
    samples: int = 256  # held-out rows for the loss
    shuffled: bool = False  # also the loss with each other's images: a third pass
    answers: int = 8  # sample answers written with their images under samples/
    questions: int = 0  # scenes only: held-out questions per kind for the accuracy table
    max_new_tokens: int = 56


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage: data, length of the run, and which parameters learn at which rate."""

    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    eval: Eval = Eval()
    # (regex over the parameter path, peak learning rate or None for frozen); first match wins, uncovered is an error
    learning_rates: tuple[tuple[str, float | None], ...] = ()
    batch: int = 128  # rows per optimizer step, over all devices and accumulation steps
    accumulation: int = 1  # micro-batches per optimizer step
    steps: int = 0  # optimizer steps; 0: as many as `epochs` take
    epochs: int = 1
    weights: str = "auto"  # sharded over mesh.fsdp | replicated: a copy on each device | auto: see train/stages.py
    save: Weights = Weights()
    fresh: tuple[str, ...] = ()  # modules drawn anew before the stage: vision, projector, llm
    loss_chunks: int = 1  # pieces of the sequence the vocabulary-wide logits are made in


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    model: Model = Model()
    tokenizer: str = "tiny"  # a tokenizer.model, tokenizer.json or .gguf, a folder, or `tiny` (built in)
    load: Weights = Weights()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()
    guard: Guard = Guard()
    log_every: int = 10  # steps between progress lines; every step is written to metrics.jsonl
    hash_frozen: bool = False  # print a SHA-256 of the frozen parameters before and after each stage
    run: tuple[str, ...] = ()  # names of the stages to run, in order
    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)


def defaults() -> ConfigDict:
    """A ConfigDict with every default and no stages: what a file under `configs/` starts from."""
    return ConfigDict(_as_dict(Config()))


def stage(**changes) -> ConfigDict:
    """A stage's defaults as a ConfigDict, with top-level `changes` applied."""
    fresh = ConfigDict(_as_dict(Stage()))
    for key, value in changes.items():
        if key not in fresh:
            raise ConfigError(f"a stage has no setting `{key}`{_suggest(key, fresh)}")
        fresh[key] = value
    return fresh


def from_config_dict(values: ConfigDict) -> Config:
    """ConfigDict -> frozen Config. Raises ConfigError for an unknown key, a wrong type or a value out of range."""
    config = build(Config, values.to_dict(), "config")
    _check(config)
    # A ConfigDict sorts its keys; `run` says the order, and a stage that it leaves out does not exist.
    return dataclasses.replace(config, stages={name: config.stages[name] for name in config.run})


def model_config(model: Model, platform: str | None = None) -> architectures.ModelConfig:
    """Names -> shapes, and the attention kernel for `platform`: tpu | cuda | rocm | cpu; None, where nobody trains,
    gives the plain one. Raises ConfigError for a name that is not in the tables, and for a kernel that was asked for
    and does not do this model on this platform."""
    vision = _named(architectures.VISION, model.vision, "model.vision")
    vision = dataclasses.replace(vision, select_layer=model.select_layer, select_feature=model.select_feature)
    llm = _named(architectures.LLM, model.llm, "model.llm")
    if not 0 <= vision.blocks_used <= vision.layers:
        raise ConfigError(f"model.select_layer={model.select_layer} does not exist in a ViT of {vision.layers} blocks")
    return architectures.ModelConfig(
        vision=vision, llm=llm, projector=model.projector, dtype=model.dtype, feature_dtype=model.feature_dtype,
        remat=model.remat, unroll=model.unroll, attention=_attention(model, llm.head_size, platform),
    )  # fmt: skip


def _attention(model: Model, head_size: int, platform: str | None) -> str:
    _choice(model.attention, ("auto", "xla", *KERNELS.values()), "config.model.attention")
    asked, fused = model.attention, KERNELS.get(platform)
    if platform is None or asked == "xla":
        return "xla"
    if fused is None or asked not in ("auto", fused):
        why = f"does not run on {platform}"
    elif model.dtype != "bfloat16":
        why = f"computes in bfloat16, not in model.dtype={model.dtype!r}"  # float32 means float32 on every device
    elif fused == "cudnn" and (head_size > 128 or head_size % 8):
        why = f"takes head sizes up to 128 that are multiples of 8, not the {head_size} of {model.llm}"
    else:
        return fused
    if asked == "auto":
        return "xla"
    raise ConfigError(f"config.model.attention={asked!r} {why}; use auto or xla")


def flatten(value, prefix: str = "") -> dict[str, object]:
    """Dotted path -> leaf value of a Config (or part of one)."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    out = {}
    for key, item in value.items():
        out |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return out


def describe(config: Config, overrides: dict[str, object], file: str) -> list[str]:
    """One line per value: path, value and where it came from (default, the config file, the command line)."""
    base = flatten(Config())
    base |= flatten(Stage())  # no name is in both
    lines = []
    for path, value in flatten(config).items():
        given = any(path == o or path.startswith(f"{o}.") for o in overrides)  # a flag may set a whole group
        origin = "command line" if given else "default" if value == base[_within_stage(path)] else file
        lines.append(f"{path} = {value!r}  ({origin})")
    return lines


def _within_stage(path: str) -> str:
    """`stages.NAME.data.path` -> `data.path`; other paths as they are."""
    return path.split(".", 2)[2] if path.startswith("stages.") else path


def _as_dict(value):
    """Like dataclasses.asdict, but leaves tuples alone."""
    return {
        f.name: _as_dict(v) if dataclasses.is_dataclass(v := getattr(value, f.name)) else v
        for f in dataclasses.fields(value)
    }


def _named(table: dict, name: str, path: str):
    if name not in table:
        raise ConfigError(f"{path}={name!r} is not a known architecture{_suggest(name, table)}; known: {sorted(table)}")
    return table[name]


def _suggest(key: str, known) -> str:
    near = difflib.get_close_matches(key, [str(k) for k in known], n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def build(kind: type, values: object, path: str):
    """A dict as the dataclass `kind`. Raises ConfigError, naming the place below `path`, for what does not fit it."""
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a group of settings, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    types_ = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{path}.{key} is not a setting{_suggest(key, fields)}")
    return kind(**{key: _value(types_[key], v, f"{path}.{key}") for key, v in values.items()})


def _value(expected, value, path: str):
    if dataclasses.is_dataclass(expected):
        return build(expected, value, path)
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path} must be a group of settings, not {value!r}")
        return {k: _value(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path} must be a tuple, not {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_value(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f"{path} must have {len(args)} items, not {len(value)}: {value!r}")
        return tuple(_value(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, path)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not expected:
        raise ConfigError(f"{path} must be of type {expected.__name__}, not {type(value).__name__} ({value!r})")
    return value


def _check(config: Config) -> None:
    """Ranges and choices that no type can say; everything that can be refused before jax is even imported."""
    if not config.run:
        raise ConfigError("config.run is empty: nothing to train; it lists the names of config.stages to run, in order")
    if len(set(config.run)) < len(config.run):
        raise ConfigError(f"config.run={config.run} names a stage twice; give the second a name of its own")
    for name in config.run:
        if name not in config.stages:
            raise ConfigError(
                f"config.run names {name!r}, which is not in config.stages{_suggest(name, config.stages)}"
            )
    model_config(config.model)
    _choice(config.model.dtype, ("float32", "bfloat16"), "config.model.dtype")
    _choice(config.model.feature_dtype, ("float32", "bfloat16"), "config.model.feature_dtype")
    _choice(config.model.remat, tuple(architectures.REMAT), "config.model.remat")
    _choice(config.guard.on_spike, ("skip", "warn"), "config.guard.on_spike")
    if 0 < config.guard.spike <= 1:
        raise ConfigError(f"config.guard.spike={config.guard.spike} must be above 1, or 0 for no such rule")
    for path, value in flatten(config).items():
        key = _within_stage(path)
        least = 1 if key in AT_LEAST_ONE else 0
        if isinstance(value, int | float) and key not in ANY_SIGN and not least <= value < math.inf:
            raise ConfigError(f"config.{path}={value} must be at least {least}, and finite")
    for name, s in config.stages.items():
        at = f"config.stages.{name}"
        _choice(s.data.source, ("files", "scenes"), f"{at}.data.source")
        _choice(s.data.scenes, ("caption", "study", "tell", "instruct"), f"{at}.data.scenes")
        _choice(s.data.aspect, ("crop", "pad"), f"{at}.data.aspect")
        _choice(s.data.overlong, ("truncate", "error"), f"{at}.data.overlong")
        _choice(s.data.packing, ("none", "pack"), f"{at}.data.packing")
        _choice(s.data.bad, ("error", "replace"), f"{at}.data.bad")
        _check_lengths(s, at)
        _choice(s.optimizer.schedule, ("cosine", "constant"), f"{at}.optimizer.schedule")
        _choice(s.optimizer.first_moment, ("float32", "bfloat16"), f"{at}.optimizer.first_moment")
        _choice(s.weights, ("auto", "sharded", "replicated"), f"{at}.weights")
        if s.steps == 0 and s.data.source == "scenes":
            raise ConfigError(f"{at}.steps must be set: scenes never end, so there are no epochs to count")
        if s.data.source == "files" and name in config.run and bool(s.data.path) == bool(s.data.mixture):
            raise ConfigError(
                f"{at}.data.path must be set (a json needs image_folder too), or data.mixture; one of them"
            )
        for path, _, weight in s.data.mixture:
            if not 0 < weight < math.inf:
                raise ConfigError(f"{at}.data.mixture: the weight of {path!r} must be positive, not {weight}")
        if s.eval.shuffled and (s.data.max_images == 0 or s.eval.samples < 2):
            raise ConfigError(f"{at}.eval.shuffled needs images, and at least 2 eval.samples")
        if s.batch % s.accumulation:
            raise ConfigError(f"{at}.batch={s.batch} is not a multiple of accumulation={s.accumulation}")
        for key in ("data.held_out", "optimizer.b1", "optimizer.b2", "optimizer.warmup_ratio"):
            if flatten(s)[key] >= 1:
                raise ConfigError(f"{at}.{key}={flatten(s)[key]} must be below 1")
        if not s.learning_rates:
            raise ConfigError(f"{at}.learning_rates is empty; e.g. (('projector/.*', 2e-3), ('.*', None))")
        for module in s.fresh:
            _choice(module, ("vision", "projector", "llm"), f"{at}.fresh")
        for pattern, rate in s.learning_rates:
            try:
                re.compile(pattern)
            except re.error as e:
                raise ConfigError(f"{at}.learning_rates: {pattern!r} is not a regular expression: {e}") from None
            if rate is not None and not 0 < rate < math.inf:
                raise ConfigError(f"{at}.learning_rates: {pattern!r} has rate {rate}; write None to freeze it")


def _check_lengths(s: Stage, at: str) -> None:
    lengths = (*s.data.lengths, s.data.length)
    for length in lengths:
        if length % s.loss_chunks:
            name = "length" if length == s.data.length else "lengths"
            raise ConfigError(f"{at}.data.{name}={length} is not a multiple of loss_chunks={s.loss_chunks}")
    if list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ConfigError(
            f"{at}.data.lengths={s.data.lengths} must ascend, from 1 to below data.length={s.data.length}"
        )
    if s.data.packing == "pack" and s.data.lengths:
        raise ConfigError(f"{at}.data.lengths is for rows of one sample; packed rows are all data.length long")
    if s.data.source == "scenes" and (s.data.packing == "pack" or s.data.lengths):
        raise ConfigError(f"{at}.data.packing and lengths need samples that can be measured first; scenes never end")
    if s.data.mixture and s.data.lengths:
        raise ConfigError(f"{at}.data.lengths does not go with a mixture, which never ends; packing=pack does")


def _choice(value: str, allowed: tuple[str, ...], path: str) -> None:
    if value not in allowed:
        raise ConfigError(f"{path}={value!r} is not one of {', '.join(allowed)}{_suggest(value, allowed)}")
