"""python -m llava_jax.main --config=configs/quickstart.py [--workdir=DIR] [--config.a.b=value ...]

Trains the stages of a config, one after another. A workdir that already has checkpoints is continued.
Exit codes: 0 done, 1 the run failed, 2 bad usage or config, 143 stopped by SIGTERM after saving.
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from llava_jax.config import describe, from_config_dict
from llava_jax.errors import ConfigError, UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "File whose get_config() makes the run's config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run. Default: workdir/<name of the config file>.")


def read_config(argv: list[str]):
    """Command line -> (Config, workdir, printable lines that say where each value came from).

    Raises ConfigError for anything wrong with flags, the config file or a value in it.
    """
    try:
        rest = flags.FLAGS(argv)[1:]
        values = _CONFIG.value
        file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
        overrides = config_flags.get_override_values(flags.FLAGS["config"])
        settings = values.to_dict() and values
    except flags.Error as e:
        missing = "not been parsed" in str(e)
        raise ConfigError(
            "--config=FILE is required, e.g. --config=configs/quickstart.py" if missing else str(e)
        ) from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError, SyntaxError, ImportError) as e:
        # what ml_collections raises for an unknown key ("Did you mean ..."), a wrong type, a missing or broken file
        text = str(e.args[0] if isinstance(e, (AttributeError, KeyError)) and e.args else e)
        raise ConfigError(f"config: {text}") from None
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; settings are written --config.name=value")
    config = from_config_dict(settings)
    workdir = Path(_WORKDIR.value or f"workdir/{file.stem}")
    return config, workdir, describe(config, overrides, file.name)


def main(argv: list[str]) -> int:
    try:
        config, workdir, lines = read_config(argv)
        # jax is imported only now: a typo in a flag is reported at once.
        from llava_jax.train.loop import Stopped, train

        print("\n".join(["config:", *("  " + line for line in lines)]), flush=True)
        train(config, workdir, argv)
        return 0
    except Stopped as e:
        print(e, file=sys.stderr)
        return 143
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the compiler's start-up chatter
    sys.exit(main(sys.argv))
