"""Files that ship with the package: the towers and the tokenizer of the quickstart, and a trained tiny LLaVA."""

from importlib import resources
from pathlib import Path

NOTE = "This model knows only the words of scenes, in lower case, with spaces around punctuation: where is the circle ?"
BUILT_IN = Path(str(resources.files("llava_jax") / "pretrained"))


def built_in_model() -> Path:
    """Returns the folder of the tiny LLaVA, in Hugging Face's format. Its README.md says how it was trained."""
    return BUILT_IN / "llava"


def model_location(path: Path) -> Path:
    """Returns `path`, or the folder of the built-in model for `tiny` if there is no file or folder of that name."""
    return built_in_model() if path == Path("tiny") and not path.exists() else path
