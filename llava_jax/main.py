"""python -m llava_jax.main --config=FILE [--workdir=DIR] [--config.NAME=VALUE ...]

Trains the stages of a config, one after another. A workdir that already has checkpoints is continued.

  --config=FILE          a Python file whose get_config() makes the run's config; those of this project are in configs/
  --config.NAME=VALUE    changes one value of it; the run begins by printing all names, values and where they came from
  --workdir=DIR          folder of this run; default: workdir/<name of the config file>
  --compile_cache=DIR    keeps compiled programs there, so that the next start takes them instead of compiling; a folder
                         that only you can write, for what is in it is run. Empty it when JAX or the machine changes
  --help                 prints this

Several processes train as one run, on a TPU pod, GKE, Slurm or Open MPI by themselves, elsewhere each told who it is:

  --coordinator=HOST:PORT  where process 0 listens; any free port of its host
  --processes=N            how many there are; 1: this one alone, wherever it runs
  --process=I              which one this is, 0 to N-1; process 0 prints and writes what is of all
  --lost_after=SECONDS     60; a process without a sign of life for so long ends the others, which name it

Examples:
  python -m llava_jax.main --config=configs/quickstart.py
  python -m llava_jax.main --config=configs/quickstart.py --workdir=/tmp/short --config.stages.stage1.steps=20
  python -m llava_jax.main --config=configs/stage1.py --config.model.llm=vicuna_13b_v1.3 --config.mesh.tensor=2

Exit codes: 0 done, 1 the run failed, 2 bad usage or config, 3 too many steps in a row had to be skipped, 143 stopped by
SIGTERM after saving, 134 another process was lost (JAX aborts this one, and its last lines name the other).
"""

import contextlib
import os
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from llava_jax.compile_cache import compile_cache
from llava_jax.config import Config, describe, from_config_dict
from llava_jax.errors import ConfigError, UserError, harmless
from llava_jax.processes import Processes, joined


def read_config(argv: list[str]) -> tuple[Config, Path, list[str], Processes, Path | None]:
    """Command line -> (Config, workdir, printable lines that say where each value came from, who takes part, where
    compiled programs are kept).

    Raises ConfigError for anything wrong with flags, the config file or a value in it.
    """
    table = flags.FlagValues()  # not absl's global ones: libraries add theirs there
    config_flags.DEFINE_config_file("config", None, "the config file", flag_values=table, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=table)
    flags.DEFINE_string("compile_cache", None, "folder of compiled programs", flag_values=table)
    flags.DEFINE_string("coordinator", None, "where process 0 listens", flag_values=table)
    flags.DEFINE_integer("processes", None, "how many", flag_values=table)
    flags.DEFINE_integer("process", None, "which one", flag_values=table)
    flags.DEFINE_integer("lost_after", Processes.lost_after, "seconds", flag_values=table)
    try:
        rest = table(argv)[1:]
        if rest:
            raise ConfigError(f"unexpected argument {rest[0]!r}; settings are written --config.name=value")
        if not table["config"].present:
            raise ConfigError("--config=FILE is required, e.g. --config=configs/quickstart.py; --help says more")
        file = Path(config_flags.get_config_filename(table["config"]))
        processes = Processes(table.coordinator, table.processes, table.process, table.lost_after)
        values, overrides = table["config"].value, config_flags.get_override_values(table["config"])
        if not isinstance(values, ConfigDict):
            getattr(values, "lock", None)  # of a file that could not be read: raises the reason
            raise ConfigError(f"{file}: get_config() must return llava_jax.config.defaults(), changed; not {values!r}")
    except Exception as e:  # a config file is a program and may raise anything
        raise ConfigError(_explain(e)) from None
    config = from_config_dict(values)
    workdir, lines = Path(table.workdir or f"workdir/{file.stem}"), describe(config, overrides, file.name)
    return config, workdir, lines, processes, Path(table.compile_cache) if table.compile_cache else None


def _explain(error: Exception) -> str:
    """What went wrong, in one line, with file and line where it went wrong inside the config file."""
    place, chain = "", error
    while chain is not None:  # ml_collections and absl wrap what a file raises, up to two times
        for frame, line in traceback.walk_tb(chain.__traceback__):
            if frame.f_globals.get("__name__") == "config_config":  # the name that ml_collections loads it under
                place, error = f"{frame.f_code.co_filename}:{line}: ", chain
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    if place and not isinstance(error, UserError):
        return f"{place}{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        return f"the config file cannot be read: {str(error.__cause__ or error).splitlines()[-1].strip()}"
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, KeyError):  # its text is a repr
        return "no such setting in the config: " + str(error.args[0]).replace("\n", "; ")
    lines = str(error).strip().splitlines()
    return place + " ".join(lines if len(lines) < 3 else [lines[0], lines[-1]])  # without a traceback in the middle


def main(argv: list[str]) -> int:
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(__doc__)
        return 0
    try:
        config, workdir, lines, processes, programs = read_config(argv)
        with joined(processes) as index:
            if index == 0:
                print("\n".join(["config:", *("  " + line for line in lines)]), flush=True)
            # jax is imported only now: a typo in a flag is reported at once.
            from llava_jax.train.loop import Stopped, train

            say = print if index == 0 else lambda text: None
            try:
                with compile_cache(programs, say) if programs else contextlib.nullcontext():
                    train(config, workdir, argv)
            except Stopped as e:
                if index == 0:
                    print(e, file=sys.stderr)
                return 143
        return 0
    except UserError as e:
        print(f"error: {harmless(e)}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compiler's start-up chatter
    sys.exit(main(sys.argv))
