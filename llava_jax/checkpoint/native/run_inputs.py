"""What a workdir keeps of the files that its run was started from: the tokenizer and the architecture.

With them a workdir loads, converts and resumes after it was moved, and when those files are gone or have changed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from llava_jax.checkpoint.architecture_json import architecture_from_json, architecture_to_json
from llava_jax.checkpoint.native.integrity import steps_in
from llava_jax.checkpoint.tokenizer import copy_tokenizer, open_tokenizer, tokenizer_location
from llava_jax.config.architectures import ModelConfig
from llava_jax.errors import ConfigError, DataError
from llava_jax.output.files import atomic_path, read_object, write_atomically
from llava_jax.text.tokenizer import Tokenizer

CHECKPOINTS, TOKENIZER, ARCHITECTURE = "checkpoints", "tokenizer", "architecture.json"
# Spaces, line breaks, digits, accents and scripts, so that a changed normalizer or pre-tokenizer changes the ids.
PROBE = " Naïve  e\u0301té,\n\n\tdon't 1234.5 <b> X_y ＡＢ 漢字 かな привет 👩‍🚀\u200b </s> end "


def has_checkpoint(folder: Path) -> bool:
    """Returns whether a workdir has a checkpoint. Until then its run starts over, from the files that its config
    names."""
    return (folder / CHECKPOINTS).is_dir() and bool(steps_in(folder / CHECKPOINTS))


def own_tokenizer(folder: Path) -> Path | None:
    """Returns the folder of the tokenizer in a workdir, None in a workdir of an older version."""
    return folder / TOKENIZER if (folder / TOKENIZER).is_dir() else None


def own_architecture(folder: Path) -> ModelConfig | None:
    """Returns the architecture of the run in a workdir, None in a workdir of an older version. Raises DataError for a
    broken file."""
    file = folder / ARCHITECTURE
    return (
        architecture_from_json(read_object(file, "the architecture of the run"), str(file)) if file.exists() else None
    )


def open_run_tokenizer(folder: Path, name: str, load_llm: str, log: Callable[[str], None]) -> Tokenizer:
    """Opens the tokenizer of a run: that in the workdir if the run resumes, else the one at `name`.

    A run that starts logs if the language model at `load_llm` ("": none) has another tokenizer beside it, because ids
    would mean other words than those that the model knows. When a run resumes, a tokenizer at `name` is not needed, but
    if it is there and differs by now, this is logged. Raises ConfigError where another name than before leads to
    another tokenizer, and DataError as `open_tokenizer` does.
    """
    own = own_tokenizer(folder) if has_checkpoint(folder) else None
    if own is None:
        tokenizer = open_tokenizer(name)
        if load_llm and load_llm != name and _has_other_tokenizer(Path(load_llm), tokenizer):
            log(
                f"WARNING: the tokenizer {name} is not the one of load.llm={load_llm}, so its ids mean other words to "
                f"the model. To use the model's own, set --config.tokenizer={load_llm}"
            )
        return tokenizer
    tokenizer = open_tokenizer(str(own))
    file = folder / "config.json"
    old_name = read_object(file, "what the run is").get("tokenizer") if file.exists() else name
    try:
        is_equal = tokenizer_digest(open_tokenizer(name)) == tokenizer_digest(tokenizer)
    except (DataError, ConfigError):  # the run was moved
        if name != old_name:
            raise
        return tokenizer
    if not is_equal and name != old_name:
        raise ConfigError(
            f"{folder} holds a run with another tokenizer than {name}: its own is {own}, from {old_name}. Resume with "
            f"--config.tokenizer={old_name}, or choose another --workdir"
        )
    if not is_equal:
        log(f"WARNING: the tokenizer {name} has changed since the run was started; the run's own is used, {own}")
    return tokenizer


def _has_other_tokenizer(weights: Path, tokenizer: Tokenizer) -> bool:
    """Returns whether a tokenizer lies with the weights (of a folder, a GGUF or a workdir) and differs."""
    try:
        return tokenizer_digest(open_tokenizer(str(own_tokenizer(weights) or weights))) != tokenizer_digest(tokenizer)
    except (DataError, ConfigError):  # a module file, or a folder of weights alone
        return False


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Returns a short digest of what a tokenizer does: its tokens, its special ids, and the ids of a text.

    The files cannot be compared instead: those that are generated for a GGUF differ from it.
    """
    t = tokenizer
    probes = [t.encode(PROBE), t.encode(PROBE, dummy_prefix=True)]
    settings = [sorted(t.special.items()), t.bos_id, t.eos_id, t.pad_id, t.unk_id, t.add_bos, t.legacy, probes]
    content = json.dumps([sorted(t.backend.get_vocab().items()), settings])
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]


def write_run_inputs(folder: Path, tokenizer: Tokenizer, source: str, config: ModelConfig) -> None:
    """Writes the tokenizer's files and the architecture into a workdir, on process 0, each atomically. Those of a run
    that resumes are kept. source: see `open_tokenizer`. Raises OSError."""
    if jax.process_index() != 0:
        return
    resumes = has_checkpoint(folder)
    if not (resumes and own_tokenizer(folder)):
        partial = folder / f"{TOKENIZER}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        with atomic_path(folder / TOKENIZER, partial):
            partial.mkdir(parents=True)
            copy_tokenizer(partial, tokenizer, tokenizer_location(source), config.llm.max_positions)
            if own_tokenizer(folder):  # of a run that was stopped before its first checkpoint
                shutil.rmtree(folder / TOKENIZER)
    if not (resumes and (folder / ARCHITECTURE).exists()):
        write_atomically(folder / ARCHITECTURE, json.dumps(architecture_to_json(config), indent=1))
