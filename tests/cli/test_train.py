"""python -m llava_jax train: messages and exit codes of every error before the first step."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_jax.cli.train import main, read_config
from llava_jax.errors import ConfigError, DataError
from tests.cli.small_run import SMALL, run, write_small_run

ROOT = Path(__file__).parents[2]
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"

PAIR = ("--coordinator=localhost:1234", "--processes=2", "--process=1")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    return write_small_run(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------------ subprocesses and help


def test_flag_typo_is_reported_within_three_seconds_without_traceback():
    began = time.perf_counter()
    command = [sys.executable, "-m", "llava_jax.main", QUICKSTART, "--config.stages.stage1.bath=8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert time.perf_counter() - began < 3
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and "'bath'" in done.stderr and '"batch"' in done.stderr


def test_read_config_imports_no_jax():
    text = (
        "import sys; from llava_jax.cli.train import read_config; "
        f"read_config(['main', {QUICKSTART!r}]); "
        "print(sorted({'jax', 'flax', 'numpy', 'grain', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_help_shows_flags_and_three_valid_examples(capsys):
    for flag in ("--help", "-h"):
        code, out, err = run(capsys, flag)
        assert code == 0 and err == ""
        for word in ("--config=FILE", "--workdir=DIR", "--config.NAME=VALUE", "--stalled-after=SECONDS", "Exit codes"):
            assert word in out
        examples = [line.split()[4:] for line in out.splitlines() if line.startswith("  python -m llava_jax train ")]
        assert len(examples) == 3
    for flags in examples:  # and they parse
        sys.modules.pop("config_config", None)
        read_config(["main", *(f.replace("=configs/", f"={ROOT}/configs/") for f in flags)])


# ------------------------------------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--config=FILE is required"),
        (["--config"], "Missing value for flag --config"),
        (["--config="], "the config file cannot be read"),
        (["--config=gone.py"], "the config file cannot be read: .*No such file or directory: 'gone.py'"),
        (["--config=gone.py", "--config.seed=1"], "the config file cannot be read: .*'gone.py'"),
        (["--config=images"], "the config file cannot be read: .*directory: 'images'"),
        (["--config=small.py", "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        (["--config=small.py", "more"], "unexpected argument 'more'; settings are written --config.name=value"),
        (["--config=small.py", "--confg.seed=1"], "Unknown command line flag 'confg.seed'"),
        (["--config=small.py", "--config.sed=1"], "no such setting in the config: 'sed'; Did you mean \"seed\""),
        (["--config=small.py", "--config.stages.on.batch=1"], "'on'; Did you mean \"one\""),
        (["--config=small.py", "--config.seed=x"], "--config.seed=x must be a whole number"),
        (["--config=small.py", "--config.stages.one.batch=1.5"], "batch=1.5 must be a whole number"),
        (["--config=small.py", "--config.model=3"], "--config.model=3"),
        (["--config=small.py", "--config.seed=-1"], "config.seed=-1 must be at least 0"),
        (["--config=small.py", "--config.run=one,two"], "'one,two', which is not in config.stages"),
        (["--config.seed=1", "--config=small.py"], "--config.seed=1 in argv before a value for --config"),
        (["--config=small.py", "--processes=2"], "--coordinator and --process missing: several processes each need"),
        (["--config=small.py", "--processes=1", "--process=0"], "--coordinator missing"),
        (["--config=small.py", *PAIR[:2], "--process=2"], "--process=2 is not one of --processes=2; .* from 0"),
        (["--config=small.py", *PAIR[:2], "--process=-1"], "--process=-1 is not one of"),
        (["--config=small.py", *PAIR[:2], "--process=x"], "--process=x must be a whole number"),
        (["--config=small.py", *PAIR[1:], "--coordinator=host"], "--coordinator=host is not HOST:PORT"),
        (["--config=small.py", *PAIR[1:], "--coordinator=host:0"], "--coordinator=host:0 is not HOST:PORT"),
        (["--config=small.py", *PAIR, "--lost_after=0"], "--lost_after=0 must be at least 1"),
    ],
)
def test_bad_flag_is_named_and_exits_2(folder, flags, message, capsys):
    with pytest.raises(ConfigError, match=message):
        read_config(["main", *flags])
    code, out, err = run(capsys, *flags)
    assert code == 2 and out == "" and err.startswith("error: ") and len(err.splitlines()) == 1


def test_port_in_use_is_named(folder, capsys):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        flags = (f"--coordinator=localhost:{port}", "--processes=2", "--process=0")
        code, out, err = run(capsys, "--config=small.py", *flags)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert f"--coordinator=localhost:{port}: process 0 cannot listen there: Address already in use" in err


BROKEN = {
    "syntax": ("def get_config(:\n", r"mine.py:1: invalid syntax"),
    "name": ("def get_config():\n    return defaults()\n", r"mine.py:2: NameError: name 'defaults' is not defined"),
    "type": ("def get_config():\n    return 1 + 'a'\n", r"mine.py:2: TypeError: unsupported operand"),
    "value": ("def get_config():\n    return int('a')\n", r"mine.py:2: ValueError: invalid literal"),
    "import": ("import no_such_module\n", r"mine.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
    "file": ("def get_config():\n    return open('/no/file')\n", r"mine.py:2: FileNotFoundError: .*'/no/file'"),
    "zero": ("def get_config():\n    return 1 / 0\n", r"mine.py:2: ZeroDivisionError: division by zero"),
    "nothing returned": (
        "def get_config():\n    pass\n",
        r"mine.py: get_config\(\) must return .*not None",
    ),
    "a dict": ("def get_config():\n    return {}\n", r"mine.py: get_config\(\) must return .*not {}"),
    "no get_config": ("x = 1\n", r"the config file defines no get_config\(\)"),
    "an argument": ("def get_config(x):\n    return x\n", r"mine.py: .*missing 1 required positional argument: 'x'"),
    "a stage's typo": (
        SMALL.replace("batch=8", "bath=8"),
        r"mine.py:10: a stage has no setting `bath`; did you mean `batch`",
    ),
    "a stage's type": (SMALL.replace("batch=8", "batch='8'"), r"mine.py:10: TypeError: .*batch"),
    "a typo": (SMALL.replace("data.length", "data.lenght"), r"data.lenght is not a setting; did you mean `length`"),
    "a typo of a group": (SMALL.replace("s.data.template", "s.dta.template"), r"mine.py:12: AttributeError: .*dta"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_config_file_is_named_with_its_line(folder, name, capsys):
    text, message = BROKEN[name]
    (folder / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(["main", "--config=mine.py"])
    code, out, err = run(capsys, "--config=mine.py")
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) <= 2


def test_flags_change_values_and_each_source_is_printed(folder):
    flags = (
        "--workdir=here", "--config.hash_frozen", "--config.stages.one.batch=16",
        "--config.stages.one.optimizer.clip=2",
        "--config.stages.one.learning_rates=(('llm/.*',1e-5),('.*',None))", "--config.load={'llm': 'x.safetensors'}",
    )  # fmt: skip
    config, workdir, lines, *_ = read_config(["main", "--config=small.py", *flags])
    stage = config.stages["one"]
    assert (stage.batch, stage.optimizer.clip, config.hash_frozen, config.load.llm) == (16, 2.0, True, "x.safetensors")
    assert stage.learning_rates == (("llm/.*", 1e-5), (".*", None))
    assert workdir == Path("here")
    for line in (
        "stages.one.batch = 16  (command line)",
        "stages.one.optimizer.clip = 2.0  (command line)",
        "hash_frozen = True  (command line)",
        "load.llm = 'x.safetensors'  (command line)",
        "stages.one.steps = 1  (small.py)",
        "model.llm = 'tiny'  (small.py)",
        "stages.one.epochs = 1  (default)",
    ):
        assert line in lines


def test_default_workdir_is_named_after_the_config_file(folder):
    assert read_config(["main", "--config=small.py"])[1] == Path("workdir/small")


def test_missing_tokenizer_is_named(folder, capsys):
    code, _, err = run(capsys, "--config=small.py", "--config.tokenizer=data/vicuna")
    assert code == 1 and "data/vicuna: there is no such file or folder" in err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.stages.one.data.template=vicuna"], "did you mean"),
        (["--config.stages.one.data.length=4"], "leaves no room for text beside 1 images of 4 patches"),
        (["--config.stages.one.eval.questions=3"], "eval.questions needs data.source=scenes"),
        (["--config.stages.one.data.path="], "or data.mixture must be set, not both"),
        (["--config.mesh.data=3"], "does not cover 8 devices"),
        (["--config.stages.one.batch=4"], "do not split over"),
        (["--config.model.projector=mlp"], "mlp"),
        (["--config.stages.one.learning_rates=(('projektor/.*',1e-3),('.*',None))"], "'projektor/.*' decides for no"),
    ],
)
def test_inconsistent_settings_exit_2(folder, flags, message, capsys):
    code, _, err = run(capsys, "--config=small.py", *flags)
    assert code == 2 and err.startswith("error: ") and message in err


# ------------------------------------------------------------------------------------------------ exit codes


def test_exit_code_depends_on_the_error(folder, monkeypatch, capsys):
    from llava_jax.train import loop

    def ends_with(error):
        def train(config, workdir, argv, processes):
            assert (config.run, workdir, argv) == (("one",), Path("workdir/small"), ["main", "--config=small.py"])
            assert processes.stalled_after == 300
            if error:
                raise error

        return train

    for error, expected in [
        (None, 0),
        (DataError("a sample"), 1),
        (ConfigError("a value"), 2),
        (loop.Stopped("saved"), 143),
    ]:
        monkeypatch.setattr(loop, "train", ends_with(error))
        code, _, err = run(capsys, "--config=small.py")
        assert code == expected and str(error or "") in err
    monkeypatch.setattr(loop, "train", ends_with(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):  # a bug keeps its traceback
        main(["main", "--config=small.py"])
