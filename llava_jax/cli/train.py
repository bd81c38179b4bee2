"""python -m llava_jax train --config=FILE [--workdir=DIR] [--config.NAME=VALUE ...]

Trains the stages of a config, one after another. A workdir that already has checkpoints is continued.
`python -m llava_jax.main` is the same command.

  --config=FILE          a Python file whose get_config() makes the run's config; those of this project are in configs/
  --config.NAME=VALUE    changes one value of it; the run begins by printing all names, values and where they came from
  --workdir=DIR          folder of this run; default: workdir/<name of the config file>
  --compile-cache=DIR    keeps compiled programs there, so that the next start takes them instead of compiling; a folder
                         that only you can write, for what is in it is run. Empty it when JAX or the machine changes
  --help                 prints this

Several processes train as one run, on a TPU pod, GKE, Slurm or Open MPI by themselves, elsewhere each told who it is:

  --coordinator=HOST:PORT  where process 0 listens; any free port of its host
  --processes=N            how many there are; 1: this one alone, wherever it runs
  --process=I              which one this is, 0 to N-1; process 0 prints and writes what is of all
  --lost-after=SECONDS     60; a process without a sign of life for so long ends the others, which name it
  --stalled-after=SECONDS  300; after so long without a step they name the process that holds them up and its
                           samples, in as long again they end; 10 times as long for what is no step (opening data,
                           compiling, evaluating, saving); 0: never

Examples:
  python -m llava_jax train --config=configs/quickstart.py
  python -m llava_jax train --config=configs/quickstart.py --workdir=/tmp/short --config.stages.stage1.steps=20
  python -m llava_jax train --config=configs/stage1.py --config.model.llm=vicuna_13b_v1.3 --config.mesh.tensor=2

Exit codes: 0 done, 1 the run failed, 2 bad usage or config, 3 too many steps in a row had to be skipped, 143 stopped by
SIGTERM after saving, 134 another process was lost and JAX aborts this one (its last lines name the other).
"""

import contextlib
from functools import partial
from pathlib import Path

from absl import flags

from llava_jax.cli.config_flags import read_command_line
from llava_jax.config.schema import Config
from llava_jax.errors import UserError
from llava_jax.output.console import log
from llava_jax.runtime.compilation import compile_cache
from llava_jax.runtime.distributed import DistributedConfig, join_processes


def read_config(argv: list[str]) -> tuple[Config, Path, list[str], DistributedConfig, Path | None]:
    """Command line -> (Config, workdir, printable lines that say where each value came from, who takes part, where
    compiled programs are kept).

    Raises ConfigError for anything wrong with flags, the config file or a value in it.
    """

    def define(flag_values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "the run's folder", flag_values=flag_values)
        flags.DEFINE_string("compile_cache", None, "folder of compiled programs", flag_values=flag_values)
        flags.DEFINE_string("coordinator", None, "where process 0 listens", flag_values=flag_values)
        flags.DEFINE_integer("processes", None, "how many", flag_values=flag_values)
        flags.DEFINE_integer("process", None, "which one", flag_values=flag_values)
        flags.DEFINE_integer("lost_after", DistributedConfig.lost_after, "seconds", flag_values=flag_values)
        flags.DEFINE_integer("stalled_after", DistributedConfig.stalled_after, "seconds", flag_values=flag_values)

    config, args, file, lines = read_command_line(argv, define)
    processes = DistributedConfig(args.coordinator, args.processes, args.process, args.lost_after, args.stalled_after)
    workdir, cache_folder = Path(args.workdir or f"workdir/{file.stem}"), args.compile_cache
    return config, workdir, lines, processes, Path(cache_folder) if cache_folder else None


def main(argv: list[str]) -> int:
    """Trains the stages of a config, one after another; `python -m llava_jax.main` is the same command.

    Args:
        argv: The command line, the program's name first.

    Returns:
        The exit code. Errors that a user can cause are logged.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        log(__doc__)
        return 0
    try:
        config, workdir, lines, processes, cache_folder = read_config(argv)
        with join_processes(processes, partial(log, to_stderr=True)) as index:
            if index == 0:
                log("\n".join(["config:", *("  " + line for line in lines)]))
            # jax is imported only now: a typo in a flag is reported at once.
            from llava_jax.train.loop import Stopped, train

            log_main = log if index == 0 else lambda text: None
            try:
                with compile_cache(cache_folder, log_main) if cache_folder else contextlib.nullcontext():
                    train(config, workdir, argv, processes)
            except Stopped as e:
                if index == 0:
                    log(e, to_stderr=True)
                return 143
        return 0
    except UserError as e:
        log(f"error: {e}", to_stderr=True)
        return e.exit_code
