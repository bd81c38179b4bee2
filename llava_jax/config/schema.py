"""The config of a run: frozen dataclasses with every default.

A file under `configs/` starts from `defaults()` (a ConfigDict), adds stages with `stage()` and changes values. Flags
such as `--config.stages.stage1.batch=64` override them. `from_config_dict` converts the result to a frozen `Config` and
refuses unknown keys (with a suggestion) and wrong types. Only `main` and config files use ConfigDicts.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Model:
    """The towers (`architectures.VISION`, `architectures.LLM`) and how they compute. The name `folder` is the
    architecture of the files in `load.vision` or `load.llm`."""

    vision: str = "clip_l14_224"
    llm: str = "vicuna_7b_v1.3"
    projector: str = "linear"  # linear | mlpNx_gelu
    select_layer: int = -2  # hidden state of the ViT that is used as image features (paper, section 4.1)
    select_feature: str = "patch"  # patch | cls_patch
    dtype: str = "bfloat16"  # float32 | bfloat16: compute dtype; trained parameters are always float32
    feature_dtype: str = "bfloat16"  # compute dtype of the vision tower
    remat: str = "full"  # a policy in architectures.REMAT: which activations are saved for the backward pass
    unroll: bool = False  # unroll the layers instead of scanning: faster on CPU, compiles longer
    attention: str = "auto"  # auto (by platform and dtype) | xla (no kernel) | splash (TPU) | cudnn (NVIDIA)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A safetensors file per module; empty: none. `load`: initial values of a run; `save`: written after a stage."""

    vision: str = ""
    projector: str = ""
    llm: str = ""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1 and gets the remaining devices."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1000  # steps between checkpoints; the end of a stage and stop signals always save one
    keep: int = 2  # newest checkpoints kept


@dataclasses.dataclass(frozen=True)
class StepGuardConfig:
    """When an optimizer step is skipped. A step with a loss or gradient that is not finite is always skipped."""

    in_a_row: int = 10  # consecutive skipped steps that are allowed; one more ends the run with exit code 3
    spike: float = 0.0  # a loss above `spike` times the median of the last `window` losses is a spike; 0: off
    on_spike: str = "skip"  # skip | warn
    window: int = 64  # losses; no spike is detected before a stage has this many


@dataclasses.dataclass(frozen=True)
class Data:
    source: str = "files"  # files | scenes
    path: str = ""  # files: LLaVA's JSON (Lines), or a folder: `data build` shards, Parquet, TFDS or ScienceQA
    image_folder: str = ""  # files: the root of the JSON's image paths, or a zip archive
    samples: int = 0  # files: size of the published data set; only `plan` uses it, to count steps
    mixture: tuple[tuple[str, str, float], ...] = ()  # files: (path, image_folder, weight) of several, instead of path
    split: str = ""  # ScienceQA: train, val, test, or another name in pid_splits.json
    prompt_format: str = ""  # ScienceQA: see data/sources/scienceqa.py; empty: QCM-LEA
    scenes: str = "caption"  # scenes: caption | study | tell | instruct
    template: str = ""  # empty: what the chat template of load.llm is, else vicuna_v1 (see text/template_table.py)
    aspect: str = "crop"  # crop (CLIP's processor) | pad (LLaVA v1.5)
    exif: str = "ignore"  # an image's EXIF orientation: ignore (as the original's training) | apply (turn the image)
    length: int = 2048  # tokens per row, image patches included
    max_images: int = 1  # image slots per row; 0 for text-only data
    overlong: str = "truncate"  # truncate | error
    packing: str = "none"  # none: one sample per row | pack: as many as fit into `length` tokens and `max_images`
    lengths: tuple[int, ...] = ()  # row lengths below `length`, for batches of short samples (no packing)
    bad: str = "replace"  # a sample that cannot be read: replace (with another; counted, logged) | error
    bad_ceiling: float = 0.001  # fraction of samples that may be replaced; above it the run stops
    held_out: float = 0.0  # files: fraction of samples in the held-out split, chosen by a hash of their id
    threads: int = 16  # threads that decode and tokenize ahead of the step
    workers: int = 0  # processes that do it, with `threads` each; 0: threads of the training process


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up and cosine decay to zero: LLaVA's settings (Hugging Face's defaults, no decay)."""

    warmup_ratio: float = 0.03
    schedule: str = "cosine"  # cosine | constant (after the warm-up)
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    first_moment: str = "float32"  # float32 | bfloat16: saves 2 bytes per trained parameter
    weight_decay: float = 0.0  # kernels and embeddings only, never scales and biases
    clip: float = 1.0  # maximum global norm of the gradients; 0: no clipping


@dataclasses.dataclass(frozen=True)
class Eval:
    before: bool = False  # evaluate before the stage's first step too
    every: int = 0  # steps between evaluations; 0: only after the stage's last step
    samples: int = 256  # held-out rows for the loss
    shuffled: bool = False  # also the loss with the images of another sample: a third pass
    answers: int = 8  # sample answers written to samples/ with their images
    questions: int = 0  # scenes only: held-out questions per kind, for the accuracy table
    max_new_tokens: int = 56


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage: data, number of steps, and the learning rate of each parameter."""

    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    eval: Eval = Eval()
    # (regex of the parameter path, peak learning rate or None: frozen). The first match wins; no match is an error.
    learning_rates: tuple[tuple[str, float | None], ...] = ()
    batch: int = 128  # rows per optimizer step, over all devices and accumulation steps
    accumulation: int = 1  # micro-batches per optimizer step
    steps: int = 0  # optimizer steps; 0: `epochs` passes over the data
    epochs: int = 1
    weights: str = "auto"  # sharded (over mesh.fsdp) | replicated | auto (see train/stages.py)
    save: Weights = Weights()
    fresh: tuple[str, ...] = ()  # modules that are reinitialized before the stage: vision, projector, llm
    loss_chunks: int = 1  # chunks of the sequence over which logits and loss are computed


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    model: Model = Model()
    tokenizer: str = "tiny"  # a tokenizer.model, tokenizer.json or .gguf file, a folder, or `tiny` (built in)
    load: Weights = Weights()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: StepGuardConfig = StepGuardConfig()
    log_every: int = 10  # steps between log lines; every step is written to metrics.jsonl
    hash_frozen: bool = False  # log a SHA-256 of the frozen parameters before and after each stage
    run: tuple[str, ...] = ()  # names of the stages to run, in order
    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)
