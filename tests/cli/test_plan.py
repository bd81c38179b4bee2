"""python -m llava_jax plan: its command line, its output, and properties of compiled train steps."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from llava_jax import config as settings
from llava_jax.__main__ import main
from llava_jax.errors import ConfigError
from llava_jax.planning import report, search, topologies
from llava_jax.planning.search import Result
from tests.fixtures.once import make_once, run_tpu_compiler

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/stage2.py"

# ------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--config=FILE is required"),
        ([CONFIG], "--topology=NAME is required, e.g. --topology=v5e:4x4"),
        ([CONFIG, "--topology=v5e:3x3"], "v5e has no slice of 3x3"),
        ([CONFIG, "--topology=v5e:4x4", "--stage=stage7"], "--stage=stage7: config.run has stage2"),
        ([CONFIG, "--topology=v5e:4x4", "--length=-1"], "--length=-1 must be positive"),
        ([CONFIG, "--topology=v5e:4x4", "--tries=-1"], "--tries, --samples and --price must not be negative"),
        ([CONFIG, "--topology=v5e:4x4", "--json=/no/such/folder/x"], "--json=/no/such/folder/x cannot be written"),
        ([CONFIG, "--topology=v5e:4x4", "--config.model.lm=x"], "Did you mean"),
        ([CONFIG, "--topology=v5e:4x4", "--topolgy=x"], "topolgy"),
    ],
)
def test_bad_command_line_prints_one_line_and_exits_2(flags, message, capsys, monkeypatch):
    for name in ("JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL"):  # the verb sets them for its process
        monkeypatch.setenv(name, os.environ.get(name, "cpu"))
    assert main(["plan", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_foreign_json_file_is_rejected_before_compiling(tmp_path, capsys):
    file = tmp_path / "notes.txt"
    for content, reason in ((b"notes\n", "notes.txt:1 is no result of a plan"), (b"\xff", "cannot be read")):
        file.write_bytes(content)
        assert main(["plan", CONFIG, "--topology=v5e:4x4", f"--json={file}"]) == 2
        assert reason in capsys.readouterr().err and file.read_bytes() == content


def test_help_and_topology_list_are_printed(capsys):
    assert main(["plan", "--help"]) == 0
    assert "--topology=NAME,..." in capsys.readouterr().out
    assert main(["plan", "--topology=list"]) == 0
    out = capsys.readouterr().out
    assert "v5e" in out and "16x16" in out and "v5p" in out


def test_plan_is_listed_among_the_verbs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "plan" in capsys.readouterr().out


# ------------------------------------------------------------------ output

RESULT = Result(
    what="stage2", model="llama_7b", topology="v5e:4x4", chips=16, mesh={"data": 1, "fsdp": 16, "tensor": 1},
    settings={"batch": 32, "accumulation": 1}, changes=(), tried=(), lacking=0.0, limit=15.75, peak=9.0, arguments=5.0,
    temporaries=7.0, parameters=7_000, trainable=6_000, rows=32, tokens=65_536, steps=3600, model_flops=2e15,
    hardware_flops=3e15, peak_flops=2e15,
    parts=dict(matmul=1.0, other=0.25, attention=0.25, exposed=0.5, hidden=0.5, memory=0.1),
    communication=({"kind": "all-gather", "how": "async", "dtype": "bf16", "bytes": 2**31},), low=2.0, high=2.5,
)  # fmt: skip


def test_describe_result_prints_memory_times_and_cost():
    text = "\n".join(report.describe_result(RESULT, price=1.5))
    assert "9.00 of 15.75 GiB, 6.75 to spare" in text
    assert "MFU             0.400 to 0.500" in text
    assert "all-gather bf16 async 2.00 GiB" in text
    assert "1,638-2,048 tokens/s per chip, 12.8-16 rows/s" in text
    assert "3,600 steps     2-2.5 h, 32-40 chip-hours, 48-60 dollars" in text
    assert "1.50 times the model's" in text


def test_describe_result_prints_missing_memory_and_tried_changes():
    short = dataclasses.replace(
        RESULT, lacking=3.25, tried=("--config.a=1: lacks 1.00 GiB",), changes=("--config.a=1",)
    )
    text = "\n".join(report.describe_result(short, 0))
    assert "DOES NOT FIT" in text and "lacks 3.25 GiB of memory per chip, which has 15.75" in text
    assert "not enough" in text and "MFU" not in text


def test_more_chips_are_worth_it_only_if_compute_dominates():
    computing = dataclasses.replace(RESULT, parts=RESULT.parts | {"exposed": 0.1, "hidden": 0.0}, high=2.0)
    assert "worth it" in report.twice(computing)  # 1.9 of 2 s are halved
    assert "more chips do not help" in report.twice(RESULT)  # 0.5 to 1 s is not halved
    one_row_each = dataclasses.replace(RESULT, rows=16)
    assert "cannot split 16 rows" in report.twice(one_row_each)


def test_results_file_is_appended_and_becomes_one_table(tmp_path):
    file = tmp_path / "plan.jsonl"
    other = dataclasses.replace(RESULT, topology="v5e:2x2", lacking=1.5, program="HloModule")
    for results in ([RESULT, other], [dataclasses.replace(RESULT, low=1.0)]):
        report.append(file, results)
    assert "HloModule" not in file.read_text()
    lines = report.results_table(report.read_results(file), 0.0)
    assert len(lines) == 3  # for the same program only the newer result
    assert "+1.50 15.75" in lines[1] and "does not fit" in lines[1]
    assert "0.400-1.000" in lines[2] and lines[2].endswith("fits")
    file.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"plan.jsonl:1 is no result of a plan"):
        report.read_results(file)


# ------------------------------------------------------------------ search


def small(**stage) -> settings.Config:
    c = settings.defaults()
    c.model.vision = c.model.llm = "tiny"
    c.run = ("stage1",)
    c.stages.stage1 = settings.stage(steps=5, learning_rates=(("vision/.*", None), (".*", 1e-3)), **stage)
    c.stages.stage1.data.source = "scenes"
    return settings.from_config_dict(c)


def test_tensor_axis_grows_if_devices_outnumber_rows():
    config, flags = search._split_rows(small(batch=8), "stage1", topologies.parse_topology("v5e:4x4"))
    assert flags == ["--config.mesh.tensor=2"] and config.mesh.tensor == 2
    assert search._split_rows(small(batch=32), "stage1", topologies.parse_topology("v5e:4x4"))[1] == []
    assert search._split_rows(small(batch=6), "stage1", topologies.parse_topology("v5e:4x4"))[1] == []  # raises later


def plan_with(monkeypatch, lacking: dict[str, float], tries=9, best=False, **stage):
    """Runs `plan_stage` with a fake compiler. lacking: {"setting=value": GiB that lack until it is set}."""
    log_lines = []

    def compile_stage(config, name, topology, samples):
        flat = {path: str(value) for path, value in settings.flatten(config).items()}
        for change, gib in lacking.items():
            path, value = change.split("=")
            if flat[path] != value:
                raise search.DoesNotFit(gib)
        return dataclasses.replace(RESULT, low=1.0 + (config.model.remat == "full"), high=3.0)

    monkeypatch.setattr(search, "compile_stage", compile_stage)
    monkeypatch.setattr(search.topologies, "devices", lambda topology: __import__("jax").devices()[:4])
    options = search.SearchOptions(best, tries, log_lines.append)
    return search.plan_stage(small(**stage), "stage1", topologies.parse_topology("v5e:2x2"), options, 0), log_lines


@pytest.mark.parametrize(
    "message, lacking",
    [
        ("Ran out of memory in memory space hbm. Used 18.30G of 15.75G hbm. Exceeded hbm capacity by 2.55G.", 2.55),
        ("Used 15.76G of 15.75G hbm. Exceeded hbm capacity by 5.12M.", 0.005),
        ("the total memory required for HLO temporaries (16.23G) exceeds available HBM (15.75G).", 0.48),
    ],
)
def test_memory_shortage_is_parsed_from_the_compiler_error(message, lacking):
    assert search._shortage(f"RESOURCE_EXHAUSTED: {message}").lacking == pytest.approx(lacking)
    assert search._shortage("INTERNAL: something else (1G) is wrong") is None


def test_changes_accumulate_until_the_step_fits(monkeypatch):
    lacking = {"stages.stage1.optimizer.first_moment=bfloat16": 3.0, "stages.stage1.accumulation=2": 1.0}
    result, log_lines = plan_with(monkeypatch, lacking, batch=16)
    moment, parts = (f"--config.{change}" for change in lacking)
    assert result.fits and result.changes == (moment, parts)
    assert result.tried == (f"{moment}: lacks 1.00 GiB", f"{parts}: fits")
    assert "lacks 3.00 GiB per chip" in log_lines[0]


def test_tries_limits_the_number_of_changes(monkeypatch):
    result, _ = plan_with(monkeypatch, {"stages.stage1.loss_chunks=7": 2.0}, tries=1, batch=16)
    assert not result.fits and len(result.tried) == 1 and result.lacking == 2.0


def test_best_chooses_the_fastest_remat_policy_that_fits(monkeypatch):
    result, _ = plan_with(monkeypatch, {}, best=True, batch=16)
    assert result.changes == ("--config.model.remat=save_context",) and result.low == 1.0


def test_rows_without_room_for_text_and_empty_batches_are_rejected():
    config = small(batch=8)
    full = search.changed(config, "stages.stage1.data.length", 9)  # the tiny tower has 9 patches
    with pytest.raises(ConfigError, match="leaves no room for text"):
        search.compile_stage(full, "stage1", topologies.parse_topology("v5e:2x2"), 0)
    for batch, cache in ((0, 8), (1, 1)):
        with pytest.raises(ConfigError, match="must be at least 1, .* at least 2"):
            search.plan_decode(config, topologies.parse_topology("v5e:2x2"), batch, cache)


# ------------------------------------------------------------------ compiled programs


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict:
    script = Path(__file__).with_name("plan_programs.py")
    folder = make_once(tmp_path_factory, "plan", lambda folder: run_tpu_compiler(script, folder))
    return json.loads((folder / "facts.json").read_text())


def test_compiled_steps_contain_no_slow_patterns(facts):
    for name, step in facts.items():
        assert step["slowed_by"] == [], name
        assert not step["windowed"], name
        assert step["float32_gathers"] == [], name
        assert step["square"] is None, name  # no materialized attention scores
        # Forward, forward again in the backward pass (remat), two backward kernels; once, because of the layer scan.
        assert step["kernels"] == 4, name


def test_train_state_buffers_are_donated(facts):
    for name, step in facts.items():
        kept = [path for path in step["not_aliased"] if "trainable" in path or "opt_state" in path]
        assert kept == [], name


def test_stage_1_reduces_only_projector_gradients(facts):
    width, mlp = 128, 344
    shapes = set(facts["stage1"]["reduced"])
    assert {f"{width}x{mlp}", f"{mlp}x{width}"} & set(facts["stage2"]["reduced"])  # the shapes in question
    assert not {f"{width}x{mlp}", f"{mlp}x{width}"} & shapes
    # Weights, two moments and the batch: frozen parameters have no optimizer state.
    assert facts["stage1"]["arguments"] < 0.6 * facts["stage2"]["arguments"]


def test_replicated_weights_need_only_all_reduce(facts):
    assert facts["copied"]["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert facts["copied"]["sent"] == ["all-reduce"]
