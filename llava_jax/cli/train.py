"""python -m llava_jax train --config=FILE [--workdir=DIR] [--config.NAME=VALUE ...]

Trains the stages of a config in order. If the workdir contains checkpoints, the run resumes from the newest one.
`python -m llava_jax.main` is the same command.

  --config=FILE          a Python file whose get_config() returns the config; this project's are in configs/
  --config.NAME=VALUE    overrides a value; every run first prints all names, values and their sources
  --workdir=DIR          folder of the run (default: workdir/<name of the config file>)
  --compile-cache=DIR    caches compiled programs for the next start. Only you may have write access, because the
                         programs are executed. Empty it after a change of JAX or the machine
  --help                 prints this text

Several processes train as one run. A TPU pod, GKE, Slurm and Open MPI are detected; elsewhere pass to each process:

  --coordinator=HOST:PORT  host of process 0 and any free port on it
  --processes=N            number of processes; 1: only this one, even on a cluster
  --process=I              index of this process, 0 to N-1; process 0 logs and writes for all
  --lost-after=SECONDS     without a heartbeat of a process for this time, the others exit and name it (default: 60)
  --stalled-after=SECONDS  without a step for this time, the straggler and its samples are reported; after twice the
                           time all exit. Opening data, compiling, evaluating and saving may take 10 times as long;
                           0: never (default: 300)

Examples:
  python -m llava_jax train --config=configs/quickstart.py
  python -m llava_jax train --config=configs/quickstart.py --workdir=/tmp/short --config.stages.stage1.steps=20
  python -m llava_jax train --config=configs/stage1.py --config.model.llm=vicuna_13b_v1.3 --config.mesh.tensor=2

SIGINT (Ctrl-C), SIGHUP and SIGTERM save a checkpoint and end the run; a second one ends it at once, without saving.

Exit codes: 0 success, 1 the run failed, 2 bad usage or config, 3 too many steps in a row were skipped, 134 JAX aborted
this process because another one was lost (the last lines name it). After saving: 130 SIGINT, 129 SIGHUP, 143 SIGTERM,
141 standard output is lost.
"""

import contextlib
from functools import partial
from pathlib import Path

from absl import flags

from llava_jax.cli.config_flags import read_command_line
from llava_jax.config.schema import Config
from llava_jax.errors import UserError
from llava_jax.output.console import log
from llava_jax.output.files import local_path
from llava_jax.runtime.compilation import compile_cache
from llava_jax.runtime.distributed import DistributedConfig, join_processes


def read_config(argv: list[str]) -> tuple[Config, Path, list[str], DistributedConfig, Path | None]:
    """Parses a command line, the program's name first.

    Returns (config, workdir, lines for the log with the source of each value, processes, compile cache or None).
    Raises ConfigError for an error in the flags, in the config file or in a value.
    """

    def define(flag_values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "folder of the run", flag_values=flag_values)
        flags.DEFINE_string("compile_cache", None, "folder of compiled programs", flag_values=flag_values)
        flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=flag_values)
        flags.DEFINE_integer("processes", None, "number of processes", flag_values=flag_values)
        flags.DEFINE_integer("process", None, "index of this process", flag_values=flag_values)
        flags.DEFINE_integer("lost_after", DistributedConfig.lost_after, "seconds", flag_values=flag_values)
        flags.DEFINE_integer("stalled_after", DistributedConfig.stalled_after, "seconds", flag_values=flag_values)

    config, args, file, lines = read_command_line(argv, define)
    processes = DistributedConfig(args.coordinator, args.processes, args.process, args.lost_after, args.stalled_after)
    workdir = local_path(args.workdir or f"workdir/{file.stem}", "--workdir")
    cache_folder = local_path(args.compile_cache, "--compile-cache") if args.compile_cache else None
    return config, workdir, lines, processes, cache_folder


def main(argv: list[str]) -> int:
    """Trains the stages of a config in order; `python -m llava_jax.main` is the same command.

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
            # imports jax only here, so that a typo in a flag is reported at once
            from llava_jax.train.loop import Stopped, train

            log_main = log if index == 0 else lambda text: None
            try:
                with compile_cache(cache_folder, log_main) if cache_folder else contextlib.nullcontext():
                    train(config, workdir, argv, processes)
            except Stopped as e:
                if index == 0:
                    log(e, to_stderr=True)
                return e.exit_code
        return 0
    except UserError as e:
        log(f"error: {e}", to_stderr=True)
        return e.exit_code
