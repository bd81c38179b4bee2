"""A short run like those on real data: a packed mixture of two sources with unreadable images and worker processes,
then one of the sources in rows of several lengths. A checkpoint every 3 steps.

Its data, scenes written as LLaVA JSON and image files, is created in $PACKED_DATA if missing:

    PACKED_DATA=/tmp/packed python launch/bench/check_resume.py --config=tests/train/packed_config.py --seeds=20
"""

import json
import os
from pathlib import Path

from llava_jax import config
from llava_jax.data.sources.scenes import SceneSource
from tests.fixtures import micro_towers  # noqa: F401

BAD = (5, 40, 71)  # of EXAMPLES
EXAMPLES = 96
MORE_BAD = (2, 17)  # of MORE, the other source
MORE = 40


def write_data(folder: Path, examples: int, bad, kind: str = "instruct") -> None:
    """Writes `examples` scenes as chat.json and images/; the images of `bad` are missing or truncated."""
    (folder / "images").mkdir(parents=True)
    source, rows = SceneSource(kind, 0, False, 24), []
    for i in range(examples):
        example = source[i]
        turns = [{"from": role, "value": text} for role, text in example.turns]
        rows.append({"id": f"{kind} {i}", "image": f"{i}.png", "conversations": turns})
        file = folder / "images" / f"{i}.png"
        if i not in bad or i % 2:
            example.images[0].save(file)
        if i in bad and i % 2:
            file.write_bytes(file.read_bytes()[:90])
    (folder / "chat.json").write_text(json.dumps(rows), encoding="utf-8")


def get_config():
    folder = Path(os.environ["PACKED_DATA"])
    more = folder / "captions"
    if not (folder / "chat.json").exists():
        write_data(folder, EXAMPLES, BAD)
        write_data(more, MORE, MORE_BAD, "caption")
    c = config.defaults()
    c.model.vision = c.model.llm = "micro"
    c.model.dtype = c.model.feature_dtype = "float32"
    c.model.remat = "none"
    c.run = ("packed", "buckets")
    c.log_every = 1
    c.checkpoint.every = 3

    c.stages.packed = s = config.stage(batch=8, epochs=2)
    s.data.packing, s.data.length, s.data.max_images, s.data.workers = "pack", 256, 4, 2
    c.stages.buckets = t = config.stage(batch=8, epochs=1)
    t.data.lengths, t.data.length, t.data.max_images, t.data.workers = (64, 96), 256, 1, 2
    for s in c.stages.values():
        s.learning_rates = (("vision/.*", None), (".*", 1e-3))
        s.data.path, s.data.image_folder = str(folder / "chat.json"), str(folder / "images")
        s.data.template, s.data.threads, s.data.bad_ceiling = "vicuna_v1", 2, 0.1
    packed = c.stages.packed.data
    packed.mixture = ((packed.path, packed.image_folder, 2.0), (str(more / "chat.json"), str(more / "images"), 1.0))
    packed.path = packed.image_folder = ""
    return c
