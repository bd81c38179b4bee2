"""`python -m llava_jax VERB`: the list of verbs, their help, and the flags of verbs that read a config."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava_jax.__main__ import main
from llava_jax.cli import verbs
from llava_jax.cli.config_flags import read_command_line
from llava_jax.cli.plan import define_flags
from llava_jax.cli.train import main as train_main
from llava_jax.cli.train import read_config
from llava_jax.output.console import OutputLost
from llava_jax.output.interrupts import Interrupt

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/quickstart.py"


def verb_commands(verbs: dict) -> list[list[str]]:
    """The words of each verb and group on the command line."""
    commands = []
    for name, verb in verbs.items():
        commands.append([name])
        if isinstance(verb, tuple):
            commands += [[name, *rest] for rest in verb_commands(verb[1])]
    return commands


# Runs in a subprocess, which has not imported jax. Prints [command, CPU seconds, output of --help] for each verb, and
# which slow libraries were imported.
EVERY_HELP = """
import contextlib, io, json, sys, time
from llava_jax.__main__ import main
imports, results = time.process_time(), []
for command in json.loads(sys.argv[1]):
    began, text = time.process_time(), io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            code = main([*command, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0, command
    results.append([command, imports + time.process_time() - began, text.getvalue()])
slow = {"jax", "flax", "optax", "orbax", "grain", "torch", "transformers", "matplotlib"} & set(sys.modules)
print(json.dumps([results, sorted(slow)]))
"""


def test_every_help_takes_under_a_second_without_jax():
    commands = [[], *verb_commands(verbs.VERBS), ["ckpt"]]
    assert len(commands) >= 20
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results, slow = json.loads(done.stdout)
    assert slow == []
    for verb, seconds, text in results:
        assert "python -m llava_jax" in text and "--help" in text, verb
        assert seconds < 1, (verb, seconds)  # CPU time, independent of other processes


def test_help_lists_every_verb_and_the_alias(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "{train,chat,serve,convert,checkpoints,plan,data,datagen,eval}" in text
    assert "checkpoints (ckpt)" in text
    for verb, line in (("train", "Trains the stages of a config"), ("plan", "Compiles a config's train step")):
        assert f"{verb} " in text and line in text
    assert "argv" not in text


@pytest.mark.parametrize(
    "flags", [["--help"], [], ["--config=gone.py"], [CONFIG, "--lost-after=0"], [CONFIG, "--config.sed=1"], ["--x"]]
)
def test_train_verb_equals_llava_jax_main(flags, capsys):
    results = []
    for run in (lambda: main(["train", *flags]), lambda: train_main(["main", *flags])):
        sys.modules.pop("config_config", None)
        results.append((run(), *capsys.readouterr()))
    assert results[0] == results[1]
    assert results[0][0] == (0 if flags == ["--help"] else 2)


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_unknown_flag_of_train_or_plan_is_one_line(verb, capsys):
    assert main([verb, CONFIG, "--topolgy-x=3"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: Unknown command line flag 'topolgy-x'") and err.count("\n") == 1


@pytest.mark.parametrize(
    "error, code",
    [(KeyboardInterrupt(), 130), (Interrupt(signal.SIGHUP), 129), (BrokenPipeError(), 1), (OutputLost("full"), 1)],
)
def test_plan_exit_codes_on_interrupt_and_lost_output(error, code, monkeypatch):
    def plan(argv):
        raise error

    monkeypatch.setattr(verbs, "plan", plan)
    assert main(["plan"]) == code


@pytest.mark.parametrize(
    "command, message",
    [
        ("trian", "there is no 'trian'; did you mean `train`?"),
        ("data chek x", "`python -m llava_jax data chek`: there is no 'chek'; did you mean `check`?"),
        ("eval scienceqa pridict --out x", "there is no 'pridict'; did you mean `predict`?"),
        ("qqq", "there is no 'qqq'; known are train, chat,"),
        ("", "`python -m llava_jax` needs one of train, chat, serve, convert,"),
        ("data --length 3", "`python -m llava_jax data` needs one of check, show,"),
        ("convert a gs://bucket/b --to hf", "dst: gs:/bucket/b is a URL"),
        ("chat model --image https://host/a.png", "image: https:/host/a.png is a URL"),
        ("data check s3://bucket/rows.json", "data: s3:/bucket/rows.json is a URL"),
        ("chat model --tower hf://clip", "tower: hf:/clip is a URL"),
        ("train --config=CONFIG --workdir=gs://bucket/run", "--workdir: gs://bucket/run is a URL"),
        ("train --config=CONFIG --compile-cache=gs://b/c", "--compile-cache: gs://b/c is a URL"),
        ("train --config=CONFIG --config.load.llm=https://h/m", "config.load.llm: https://h/m is a URL"),
        (
            "train --config=CONFIG --config.stages.stage1.data.mixture=(('gs://b/a','',1.0),)",
            "config.stages.stage1.data.mixture: gs://b/a is a URL",
        ),
        ("plan --config=CONFIG --topology=v5e:2x2 --json=gs://b/c", "--json: gs://b/c is a URL"),
        (
            "train --config=CONFIG --config.stages.stage1.batch=1.5",
            "--config.stages.stage1.batch=1.5 must be a whole number",
        ),
        ("train --config=CONFIG --config.guard.spike=a:b", "--config.guard.spike=a:b must be a number"),
        ("train --config=CONFIG --config.hash_frozen=maybe", "--config.hash_frozen=maybe must be true or false"),
        ("train --config=CONFIG --config.run=(1,", "--config.run=(1, must be a tuple in Python's notation"),
        ("train --config=CONFIG --config.mesh=3", "--config.mesh=3 must be set value by value"),
        ("plan --config=CONFIG --tries=x", "--tries=x must be a whole number"),
        (f"train --config={ROOT}/tests/fixtures/once.py", "the config file defines no get_config()"),
    ],
)
def test_wrong_verbs_values_and_urls_are_one_line(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([part.replace("CONFIG", f"{ROOT}/configs/quickstart.py") for part in command.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


SPELLINGS = [
    ["--{0}=/tmp/a-b_c", "--{1}=7", "--{2}=8"],
    ["--{0}", "/tmp/a-b_c", "--{1}", "7", "-{2}", "8"],
]


@pytest.mark.parametrize("mark", "-_")
@pytest.mark.parametrize("typed", SPELLINGS, ids=["=", "space"])
def test_train_accepts_dashes_and_underscores(typed, mark):
    names = [name.replace("_", mark) for name in ("compile_cache", "lost_after", "stalled_after")]
    config, _, _, processes, programs = read_config(
        ["train", CONFIG, *(word.format(*names) for word in typed), "--config.stages.stage1.steps=3"]
    )
    assert (programs, processes.lost_after, processes.stalled_after) == (Path("/tmp/a-b_c"), 7, 8)
    assert config.stages["stage1"].steps == 3


def test_flag_value_may_look_like_a_flag():
    *_, programs = read_config(["train", CONFIG, "--compile-cache", "--lost-after"])
    assert programs == Path("--lost-after")


@pytest.mark.parametrize("mark", "-_")
def test_plan_accepts_dashes_and_underscores(mark):
    flags = [
        "--nobest",
        "--decode",
        "--topology=v5e:2x2,v4:4x4x4",
        f"--decode{mark}batch=3",
        f"--decode{mark}cache",
        "9",
    ]
    _, table, _, _ = read_command_line(["plan", CONFIG, *flags], define_flags)
    assert (table.decode_batch, table.decode_cache, table.best, table.decode) == (3, 9, False, True)
    assert table.topology == ["v5e:2x2", "v4:4x4x4"]


def test_topology_list_works_with_equals_or_space(capsys):
    outputs = []
    for flags in (["--topology=list"], ["--topology", "list"]):
        assert main(["plan", *flags]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and "v5e" in outputs[0]
