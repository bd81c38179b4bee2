"""Compiles a stage of a config for a TPU slice that is not present, estimates it, and finds what makes it fit."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from llava_jax import config as settings
from llava_jax.checkpoint.architecture import planned_model
from llava_jax.config.architectures import REMAT
from llava_jax.config.resolve import FOLDER
from llava_jax.config.schema import Config
from llava_jax.data.pipeline import steps_per_run
from llava_jax.errors import ConfigError
from llava_jax.inference.slot_engine import CHUNKS
from llava_jax.models.params import abstract_model
from llava_jax.planning import estimate, lint, topologies
from llava_jax.planning.hlo import parse as hlo
from llava_jax.planning.lower import lower_decode, lower_step
from llava_jax.planning.topologies import Topology
from llava_jax.runtime.mesh import make_mesh
from llava_jax.train.dataset import check_row_length
from llava_jax.train.stages import StageLayout, make_stage_layout

GIB = 2**30
ASSUMED_STEPS = 1000  # where their number is unknown: it is only a constant of the schedule, which changes no time


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """What to try beyond the config as it is. best: compare all remat policies. tries: the most changes to try where a
    step does not fit. log: receives a line per attempt."""

    best: bool
    tries: int
    log: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """One program on one slice. Bytes and FLOPs are of all chips unless noted otherwise; times in seconds."""

    what: str  # the stage's name, or `prefill`, `token`
    model: str
    topology: str
    chips: int
    mesh: dict[str, int]
    settings: dict[str, object]  # attention, remat, batch, length ...
    changes: tuple[str, ...]  # flags beyond the config that make it fit or faster
    tried: tuple[str, ...]  # the outcome of each change
    lacking: float  # GiB per chip that are missing; 0 if it fits
    limit: float  # GiB per chip
    peak: float = 0.0  # GiB per chip, as arguments and temporaries
    arguments: float = 0.0
    temporaries: float = 0.0
    parameters: int = 0
    trainable: int = 0
    rows: int = 0  # per step
    tokens: int = 0  # per step
    steps: int = 0  # 0: unknown
    model_flops: float = 0.0  # per step
    hardware_flops: float = 0.0
    peak_flops: float = 0.0  # of all chips, per second
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    communication: tuple[dict, ...] = ()
    low: float = 0.0
    high: float = 0.0
    compile_seconds: float = 0.0
    assumptions: tuple[str, ...] = ()
    slowed_by: tuple[str, ...] = ()  # see planning/lint.py
    program: str = ""

    @property
    def fits(self) -> bool:
        return self.lacking == 0


class DoesNotFit(Exception):
    """A program needs more memory than a chip has. lacking: the missing GiB per chip."""

    def __init__(self, lacking: float):
        super().__init__(f"lacks {lacking:.2f} GiB per chip")
        self.lacking = lacking


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Raises DoesNotFit where the program does not fit into the memory of a chip."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        raise _shortage(str(e)) or e from None


def _shortage(message: str) -> DoesNotFit | None:
    """The shortage that an error message of the compiler reports in either of two forms; None for other errors."""
    size = r"([\d.]+)([KMG])"
    gib = lambda number, unit: float(number) / {"K": 2**20, "M": 2**10, "G": 1}[unit]  # noqa: E731
    if over := re.search(rf"Exceeded hbm capacity by {size}", message):
        return DoesNotFit(gib(*over.groups()))
    # The compiler gave up before it laid out the arrays: at least this much is missing.
    if over := re.search(rf"\({size}\) exceeds available HBM \({size}\)", message):
        return DoesNotFit(gib(*over.groups()[:2]) - gib(*over.groups()[2:]))
    return None


def plan_stage(config: Config, name: str, topology: Topology, search: SearchOptions, samples: int) -> Result:
    """Plans one stage as configured; if it does not fit, with up to `search.tries` changes of `_memory_savers`; with
    `search.best`, with the fastest remat policy that fits. samples: see `_steps_of_samples`. Raises ConfigError where
    the config itself cannot run on the slice."""
    config, changes = _split_rows(config, name, topology)
    tried, lacking, result = [], 0.0, None
    try:
        result = compile_stage(config, name, topology, samples)
    except DoesNotFit as e:
        lacking = e.lacking
        search.log(f"{name} on {topology.name} does not fit as configured, it lacks {lacking:.2f} GiB per chip")
    for flags, changed in _memory_savers(config, name, topology):
        if result is not None or len(tried) == search.tries:
            break
        config, changes = changed, [*changes, *flags]
        try:
            result = compile_stage(config, name, topology, samples)
            tried.append(f"{' '.join(flags)}: fits")
        except DoesNotFit as e:
            tried.append(f"{' '.join(flags)}: lacks {e.lacking:.2f} GiB")
        search.log(f"  with {tried[-1]}")
    if result is None:
        fields = _common_fields(config, name, topology)
        return Result(
            **fields, changes=tuple(changes), tried=tuple(tried), lacking=lacking, limit=topology.hbm_bytes / GIB
        )
    if search.best:
        result, changes, outcomes = _fastest(config, name, topology, result, changes, search, samples)
        tried += outcomes
    return dataclasses.replace(result, changes=tuple(changes), tried=tuple(tried))


def _split_rows(config: Config, name: str, topology: Topology) -> tuple[Config, list[str]]:
    """(config, flags) with each row split over several devices (`mesh.tensor`) if there are more devices than rows.
    Where this does not help, `make_stage_layout` reports the error."""
    m, stage = config.mesh, config.stages[name]
    rows, devices = stage.batch // stage.accumulation, topology.device_count // m.tensor
    if m.fsdp != -1 or devices % rows or devices == rows:
        return config, []
    tensor = m.tensor * devices // rows
    return changed(config, "mesh.tensor", tensor), [f"--config.mesh.tensor={tensor}"]


def _memory_savers(config: Config, name: str, topology: Topology) -> Iterator[tuple[list[str], Config]]:
    """Yields (flags, the config with them): what saves memory, the cheapest in time first, on top of those before."""
    stage = lambda: config.stages[name]  # noqa: E731

    def change(*pairs: tuple[str, object]):
        nonlocal config
        for path, value in pairs:
            config = changed(config, path, value)
        return [f"--config.{path}={value}" for path, value in pairs], config

    layout = _layout(config, name, topology, ASSUMED_STEPS)
    if layout.mesh.shape["fsdp"] == 1 and topology.device_count > 1 and stage().weights != "sharded":
        yield change((f"stages.{name}.weights", "sharded"))
    if config.model.remat != "full":
        yield change(("model.remat", "full"))
    if config.mesh.data > 1:
        yield change(("mesh.data", 1), ("mesh.fsdp", -1))
    if stage().optimizer.first_moment == "float32":
        yield change((f"stages.{name}.optimizer.first_moment", "bfloat16"))
    rows = stage().batch // layout.mesh.shape["data"] // layout.mesh.shape["fsdp"]
    while rows % (2 * stage().accumulation) == 0:
        yield change((f"stages.{name}.accumulation", 2 * stage().accumulation))
    if config.model.llm and stage().loss_chunks == 1 and stage().data.length % 8 == 0:
        yield change((f"stages.{name}.loss_chunks", 8))


def _fastest(
    config: Config, name: str, topology: Topology, result: Result, changes: list, search: SearchOptions, samples: int
):
    """(the fastest result over the remat policies, its flags, the outcome of each policy)."""
    outcomes, flags = [f"--config.model.remat={config.model.remat}: {_seconds(result)}"], changes
    for policy in REMAT:
        if policy == config.model.remat:
            continue
        flag = f"--config.model.remat={policy}"
        try:
            other = compile_stage(changed(config, "model.remat", policy), name, topology, samples)
            outcomes.append(f"{flag}: {_seconds(other)}")
            if other.low + other.high < result.low + result.high:
                result, flags = other, [*changes, flag]
        except DoesNotFit as e:
            outcomes.append(f"{flag}: lacks {e.lacking:.2f} GiB")
        search.log(f"  with {outcomes[-1]}")
    return result, flags, outcomes


def _seconds(result: Result) -> str:
    return f"{result.low:.3f} to {result.high:.3f} s, {result.peak:.2f} GiB"


def changed(value, path: str, new):
    """A copy of a Config (or of a part of one) with the value at a dotted path replaced."""
    head, _, rest = path.partition(".")
    if isinstance(value, dict):
        return {**value, head: changed(value[head], rest, new)}
    return dataclasses.replace(value, **{head: changed(getattr(value, head), rest, new) if rest else new})


def _mesh(config: Config, topology: Topology):
    m = config.mesh
    return make_mesh(m.data, m.fsdp, m.tensor, topologies.devices(topology))


def _llm_name(config: Config) -> str:
    return config.load.llm if config.model.llm == FOLDER else config.model.llm


def _layout(config: Config, name: str, topology: Topology, steps: int) -> StageLayout:
    model_config = planned_model(config, "tpu")
    return make_stage_layout(name, config.stages[name], model_config, _mesh(config, topology), steps)


def _common_fields(config: Config, name: str, topology: Topology, mesh=None) -> dict:
    stage, model = config.stages[name], planned_model(config, "tpu")
    mesh = mesh or _layout(config, name, topology, ASSUMED_STEPS).mesh
    shown_settings = {
        "attention": model.attention, "remat": model.remat, "batch": stage.batch, "accumulation": stage.accumulation,
        "length": stage.data.length, "first_moment": stage.optimizer.first_moment, "loss_chunks": stage.loss_chunks,
    }  # fmt: skip
    return dict(
        what=name, model=_llm_name(config), topology=topology.name, chips=topology.chips,
        mesh={axis: int(size) for axis, size in mesh.shape.items()}, settings=shown_settings,
    )  # fmt: skip


def compile_stage(config: Config, name: str, topology: Topology, samples: int) -> Result:
    """Compiles and estimates a stage as configured. Raises DoesNotFit, and ConfigError for a config that cannot run."""
    stage = config.stages[name]
    steps = stage.steps or _steps_of_samples(stage, samples)
    model_config = planned_model(config, "tpu")
    check_row_length(name, stage.data, model_config.vision)
    layout = _layout(config, name, topology, steps or ASSUMED_STEPS)
    start = time.perf_counter()
    program = compile_lowered(lower_step(stage, model_config, layout))
    compile_seconds = time.perf_counter() - start
    sizes = {path: x.size for path, x in (layout.abstract.trainable | layout.abstract.frozen).items()}
    measured = _measured_fields(program, topology, layout.mesh)
    slowed_by = lint.slowed_by(
        hlo.parse_program(measured["program"]), model_config.attention != "xla", stage.data.length
    )
    return Result(
        **_common_fields(config, name, topology, layout.mesh),
        **measured, slowed_by=slowed_by, changes=(), tried=(), lacking=0.0,
        parameters=sum(sizes.values()), trainable=sum(sizes[path] for path in layout.abstract.trainable),
        rows=stage.batch, tokens=stage.batch * stage.data.length, steps=steps, model_flops=layout.flops,
        compile_seconds=compile_seconds,
    )  # fmt: skip


def _steps_of_samples(stage: settings.Stage, samples: int) -> int:
    """Steps of the stage for `samples` samples, or for `data.samples` if that is 0; 0 if unknown: without a count, or
    where packed samples share rows."""
    samples = samples or stage.data.samples
    if not samples or stage.data.packing != "none" or stage.data.mixture:
        return 0
    return steps_per_run(samples, stage.batch, stage.epochs)


def plan_decode(config: Config, topology: Topology, batch: int, cache: int) -> list[Result]:
    """Plans what a server with `batch` slots of `cache` tokens each runs: the prefill of a part of a prompt beside a
    step of all slots, and a step alone. Raises ConfigError where the mesh does not fit the model or the rows."""
    if batch < 1 or cache < 2:
        raise ConfigError(f"--decode_batch={batch} must be at least 1, --decode_cache={cache} at least 2")
    model_config, mesh = planned_model(config, "tpu"), _mesh(config, topology)
    programs = lower_decode(model_config, mesh, batch, cache)
    sizes = {path: math.prod(x.shape) for path, x in abstract_model(model_config)[0].items()}
    results = []
    for what, lowered, tokens in zip(("prefill", "token"), programs, (min(CHUNKS[-1], cache), batch), strict=True):
        fields = dict(
            what=what, model=_llm_name(config), topology=topology.name, chips=topology.chips,
            mesh={axis: int(size) for axis, size in mesh.shape.items()},
            settings={"batch": batch, "cache": cache, "dtype": config.model.dtype}, changes=(), tried=(),
            parameters=sum(sizes.values()), rows=batch, tokens=tokens,
        )  # fmt: skip
        start = time.perf_counter()
        try:
            program = compile_lowered(lowered)
            seconds = time.perf_counter() - start
            results.append(
                Result(**fields, **_measured_fields(program, topology, mesh), lacking=0.0, compile_seconds=seconds)
            )
        except DoesNotFit as e:
            results.append(Result(**fields, lacking=e.lacking, limit=topology.hbm_bytes / GIB))
    return results


def _measured_fields(program: jax.stages.Compiled, topology: Topology, mesh: Mesh) -> dict:
    """The fields of a Result that come from the compiled program."""
    memory, text = program.memory_analysis(), program.as_text()
    estimated = estimate.estimate(text, topology, [tuple(device.coords) for device in mesh.devices.flat])
    parts = {name: getattr(estimated, name) for name in ("matmul", "other", "attention", "exposed", "hidden", "memory")}
    return dict(
        limit=topology.hbm_bytes / GIB, peak=memory.peak_memory_in_bytes / GIB,
        arguments=memory.argument_size_in_bytes / GIB, temporaries=memory.temp_size_in_bytes / GIB,
        hardware_flops=estimated.hardware_flops * topology.device_count,
        peak_flops=topology.peak_flops * topology.device_count, parts=parts,
        communication=tuple(
            {"kind": kind, "how": mode, "dtype": dtype, "bytes": size}
            for (kind, mode, dtype), size in sorted(estimated.traffic.items())
        ),
        low=estimated.lower, high=estimated.upper, assumptions=estimated.assumptions, program=text,
    )  # fmt: skip
