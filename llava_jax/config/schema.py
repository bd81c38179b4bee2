"""What a run is: frozen dataclasses with every default in one place, and the way from an ml_collections ConfigDict.

A file under `configs/` starts from `defaults()` (a ConfigDict), adds stages with `stage()` and changes values; flags
such as `--config.stages.stage1.batch=64` change them once more; `from_config_dict` turns the result into a frozen
`Config` and refuses unknown keys (with a suggestion) and wrong types. No ConfigDict travels further than `main`.
"""

import dataclasses


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
class MeshConfig:
    """Sizes of the mesh axes; one may be -1 and takes the devices that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1000  # steps; the end of a stage and SIGTERM always save
    keep: int = 2  # newest checkpoints kept


@dataclasses.dataclass(frozen=True)
class StepGuardConfig:
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
    prompt_format: str = ""  # ScienceQA: see data/sources/scienceqa.py; QCM-LEA where it is empty
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
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: StepGuardConfig = StepGuardConfig()
    log_every: int = 10  # steps between progress lines; every step is written to metrics.jsonl
    hash_frozen: bool = False  # print a SHA-256 of the frozen parameters before and after each stage
    run: tuple[str, ...] = ()  # names of the stages to run, in order
    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)
