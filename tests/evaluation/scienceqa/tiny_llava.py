"""A LLaVA of random weights that answers each problem otherwise, and a folder of problems for it."""

from pathlib import Path

from llava_jax.checkpoint.huggingface.export import save_hf
from llava_jax.checkpoint.tokenizer import open_tokenizer
from tests.data.planted import encoded, noise
from tests.evaluation.scienceqa.scienceqa_folder import write_folder
from tests.models.hf_weights import random_params, small

CONFIG = small(llm=dict(vocab_size=512, max_positions=640))
SHOWN, MISSING = ("1", "4", "8", "9"), ("3",)  # problems whose images are there, and are not


def write_model(folder: Path) -> Path:
    save_hf(folder, random_params(CONFIG), CONFIG, open_tokenizer("tiny"), "float32")
    return folder


def write_problems(folder: Path) -> Path:
    """Thirteen, of many lengths."""
    problems = {}
    for i in range(13):
        problems[str(i)] = {"question": f"Which is {i}{' , or so' * (i % 4)}?", "hint": "Look. " * (i % 3)}
    for pid in (*SHOWN, *MISSING):
        problems[pid]["image"] = "image.png"
    write_folder(folder, problems)
    for pid in SHOWN:
        (folder / "images" / "test" / pid).mkdir(parents=True)
        (folder / "images" / "test" / pid / "image.png").write_bytes(encoded(noise(30, 40, int(pid)), "PNG"))
    return folder
