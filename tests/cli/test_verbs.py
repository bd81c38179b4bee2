"""`python -m llava_jax VERB`: the list of verbs, their help, and one style of flags for those that read a config."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_jax.__main__ import VERBS, main
from llava_jax.cli.config_flags import read_command_line
from llava_jax.cli.plan import _define
from llava_jax.cli.train import main as train_main
from llava_jax.cli.train import read_config

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/quickstart.py"


def paths(verbs: dict) -> list[list[str]]:
    """Each verb and each group, as the words that are typed."""
    found = []
    for name, verb in verbs.items():
        found.append([name])
        if isinstance(verb, tuple):
            found += [[name, *rest] for rest in paths(verb[1])]
    return found


# In a process of its own, which has not imported jax before: prints [words, seconds of the processor, what --help
# printed] of each verb, and which of the slow libraries were imported.
EVERY_HELP = """
import contextlib, io, json, sys, time
from llava_jax.__main__ import main
imports, results = time.process_time(), []
for words in json.loads(sys.argv[1]):
    began, text = time.process_time(), io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            code = main([*words, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0, words
    results.append([words, imports + time.process_time() - began, text.getvalue()])
slow = {"jax", "flax", "optax", "orbax", "grain", "torch", "transformers", "matplotlib"} & set(sys.modules)
print(json.dumps([results, sorted(slow)]))
"""


def test_every_help_answers_in_a_second_and_imports_no_jax():
    words = [[], *paths(VERBS), ["ckpt"]]
    assert len(words) >= 20
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, json.dumps(words)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results, slow = json.loads(done.stdout)
    assert slow == []
    for verb, seconds, text in results:
        assert "python -m llava_jax" in text and "--help" in text, verb
        assert seconds < 1, (verb, seconds)  # of the processor: other work on the machine does not count


def test_the_list_has_every_verb_and_the_alias(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "{train,chat,convert,checkpoints,plan,data,eval}" in text
    assert "checkpoints (ckpt)" in text
    for verb, line in (("train", "Trains the stages of a config"), ("plan", "Compiles a config's train step")):
        assert f"{verb} " in text and line in text
    assert "argv" not in text


@pytest.mark.parametrize(
    "flags", [["--help"], [], ["--config=gone.py"], [CONFIG, "--lost-after=0"], [CONFIG, "--config.sed=1"], ["--x"]]
)
def test_train_is_the_same_as_main(flags, capsys):
    results = []
    for run in (lambda: main(["train", *flags]), lambda: train_main(["main", *flags])):
        sys.modules.pop("config_config", None)
        results.append((run(), *capsys.readouterr()))
    assert results[0] == results[1]
    assert results[0][0] == (0 if flags == ["--help"] else 2)


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_fault_of_a_verb_that_reads_a_config_is_one_line_and_code_2(verb, capsys):
    assert main([verb, CONFIG, "--topolgy-x=3"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: Unknown command line flag 'topolgy-x'") and err.count("\n") == 1


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1)])
def test_plan_ends_as_other_verbs_do(error, code, monkeypatch):
    from llava_jax import __main__ as program

    def plan(argv):
        raise error

    monkeypatch.setattr(program, "plan", plan)
    monkeypatch.setattr(program.os, "dup2", lambda *files: None)  # standard output stays what it is
    assert main(["plan"]) == code


SPELLINGS = [
    ["--{0}=/tmp/a-b_c", "--{1}=7", "--{2}=8"],
    ["--{0}", "/tmp/a-b_c", "--{1}", "7", "-{2}", "8"],
]


@pytest.mark.parametrize("mark", "-_")
@pytest.mark.parametrize("typed", SPELLINGS, ids=["=", "space"])
def test_train_takes_dashes_and_underscores_alike(typed, mark):
    names = [name.replace("_", mark) for name in ("compile_cache", "lost_after", "stalled_after")]
    config, _, _, processes, programs = read_config(
        ["train", CONFIG, *(word.format(*names) for word in typed), "--config.stages.stage1.steps=3"]
    )
    assert (programs, processes.lost_after, processes.stalled_after) == (Path("/tmp/a-b_c"), 7, 8)
    assert config.stages["stage1"].steps == 3


def test_a_value_that_looks_like_a_flag_stays_as_it_is():
    *_, programs = read_config(["train", CONFIG, "--compile-cache", "--lost-after"])
    assert programs == Path("--lost-after")


@pytest.mark.parametrize("mark", "-_")
def test_plan_takes_dashes_and_underscores_alike(mark):
    flags = [
        "--nobest",
        "--decode",
        "--topology=v5e:2x2,v4:4x4x4",
        f"--decode{mark}batch=3",
        f"--decode{mark}cache",
        "9",
    ]
    _, table, _, _ = read_command_line(["plan", CONFIG, *flags], _define)
    assert (table.decode_batch, table.decode_cache, table.best, table.decode) == (3, 9, False, True)
    assert table.topology == ["v5e:2x2", "v4:4x4x4"]


def test_plan_lists_topologies_in_both_forms_of_a_flag(capsys):
    outputs = []
    for flags in (["--topology=list"], ["--topology", "list"]):
        assert main(["plan", *flags]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and "v5e" in outputs[0]
