"""python -m llava_jax plan --config=FILE --topology=NAME[,NAME ...] [--config.NAME=VALUE ...]

Compiles the train step of a config for TPU slices and prints memory per chip, FLOPs, communication and time. If the
step does not fit, it tries changes that save memory. It needs the compiler (`pip install 'llava_jax[tpu]'`), but no
TPU, data or weights; only a tower named `folder` reads the config of its files in `load`. A 7B model takes minutes on
two cores. Times are estimates from the compiled program; the last lines of the output list their assumptions.

  --config=FILE          the config file, and --config.NAME=VALUE, as for `train`
  --topology=NAME,...    TPU slices, e.g. v5e:4x4; --topology=list prints all
  --stage=NAME,...       stages to plan (default: all of config.run)
  --length=N             tokens of a row, instead of data.length, e.g. one of data.lengths (batches of short samples)
  --samples=N            number of samples, to estimate hours without the data files (default: data.samples)
  --best                 tries every value of model.remat and chooses the fastest that fits
  --tries=N              changes that are tried, cumulatively, if a step does not fit; 0: none (default: 3)
  --price=DOLLARS        price of a chip-hour, to estimate the cost
  --json=FILE            appends each result to FILE; the table then lists all results in FILE
  --hlo=FILE             writes the compiled program of the last result that fits
  --decode               plans `serve` instead of training: a part of a prompt and a decode step, in the compute dtype
  --decode-batch=N       conversations at a time (default: 8)
  --decode-cache=N       tokens of a conversation in the KV cache (default: 1024)
  --help                 prints this text

Examples:
  python -m llava_jax plan --config=configs/stage2.py --topology=v5e:4x4
  python -m llava_jax plan --config=configs/stage2.py --topology=v5e:8x8,v4:2x2x4 --config.model.llm=vicuna_13b_v1.3
  python -m llava_jax plan --config=configs/stage2.py --topology=v5e:2x2 --decode --config.mesh.tensor=4

Exit codes: 0 everything fits, 1 something does not fit, 2 bad usage or config.
"""

import os

from absl import flags

from llava_jax.cli.config_flags import read_command_line
from llava_jax.errors import ConfigError
from llava_jax.output.console import log
from llava_jax.output.files import local_path, write_whole


def plan(argv: list[str]) -> int:
    """Compiles a config's train step for TPUs, without a TPU: memory, time, cost.

    Args:
        argv: The command line without the program's name.

    Returns:
        The exit code.

    Raises:
        ConfigError: for a bad command line or config.
    """
    if {"--help", "-help", "-h"} & set(argv):
        log(__doc__)
        return 0
    # libtpu is used only as a compiler: JAX must not look for a TPU, and several processes may load it.
    os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    # libtpu must not query the cloud's metadata server, nor warn that there is none.
    no_cloud = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}
    os.environ |= no_cloud | {"TPU_WORKER_ID": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if "--topology=list" in argv or "--topology list" in " ".join(argv):
        from llava_jax.planning import topologies

        log(topologies.listing())
        return 0
    config, args, _, _ = read_command_line(["plan", *argv], define_flags)
    if not args.topology:
        raise ConfigError("--topology=NAME is required, e.g. --topology=v5e:4x4; --topology=list prints all")
    stages = args.stage or list(config.stages)
    if unknown := [name for name in stages if name not in config.stages]:
        raise ConfigError(f"--stage={unknown[0]}: config.run has {', '.join(config.stages)}")
    if args.length < 0 or args.length > 0 and any(args.length % s.loss_chunks for s in config.stages.values()):
        raise ConfigError(f"--length={args.length} must be positive and a multiple of loss_chunks")
    if args.tries < 0 or args.samples < 0 or args.price < 0:
        raise ConfigError("--tries, --samples and --price must not be negative")

    from llava_jax.planning import report, search, topologies

    for name in stages if args.length else ():
        config = search.changed(config, f"stages.{name}.data.length", args.length)
    slices = [topologies.parse_topology(name) for name in args.topology]
    file, program_file = (
        local_path(path, name) if path else None for path, name in ((args.json, "--json"), (args.hlo, "--hlo"))
    )
    if file:  # fails now if FILE is unusable, not after minutes of compiling
        report.append(file, [])
        report.read_results(file)
    results, assumptions = [], []
    for topology in slices:
        if args.decode:
            new_results = search.plan_decode(config, topology, args.decode_batch, args.decode_cache)
        else:
            options = search.SearchOptions(best=args.best, tries=args.tries, log=log)
            new_results = [search.plan_stage(config, name, topology, options, args.samples) for name in stages]
        for result in new_results:
            log("\n".join(report.describe_result(result, args.price)) + "\n")
            assumptions = result.assumptions or assumptions
            if program_file and result.program:
                write_whole(program_file, result.program)
        if file:
            report.append(file, new_results)
        results += new_results
    rows = report.read_results(file) if file else results
    if len(rows) > 1:
        log("\n".join(report.results_table(rows, args.price)) + "\n")
    if assumptions:
        log("\n".join(["These are estimates. They assume:", *("  " + line for line in assumptions)]))
    return 0 if all(result.fits for result in results) else 1


def define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_list("topology", [], "TPU slices", flag_values=flag_values)
    flags.DEFINE_list("stage", [], "stages to plan", flag_values=flag_values)
    flags.DEFINE_integer("length", 0, "tokens of a row", flag_values=flag_values)
    flags.DEFINE_integer("samples", 0, "number of samples", flag_values=flag_values)
    flags.DEFINE_bool("best", False, "try every remat policy", flag_values=flag_values)
    flags.DEFINE_integer("tries", 3, "changes to try", flag_values=flag_values)
    flags.DEFINE_float("price", 0.0, "dollars per chip-hour", flag_values=flag_values)
    flags.DEFINE_string("json", None, "file of results", flag_values=flag_values)
    flags.DEFINE_string("hlo", None, "file of the compiled program", flag_values=flag_values)
    flags.DEFINE_bool("decode", False, "plan inference", flag_values=flag_values)
    flags.DEFINE_integer("decode_batch", 8, "rows of the decode batch", flag_values=flag_values)
    flags.DEFINE_integer("decode_cache", 1024, "slots of the KV cache", flag_values=flag_values)
