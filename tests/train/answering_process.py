"""Answers questions with a model that is sharded over several processes, and prints the answers as JSON:

python answering_process.py COORDINATOR COUNT INDEX
"""

import json
import sys

import jax
import optax
from PIL import Image

from llava_jax.checkpoint.tokenizer import open_tokenizer
from llava_jax.config import Data, Eval, Stage
from llava_jax.data.example import Example
from llava_jax.models.llava import Llava
from llava_jax.runtime.mesh import make_mesh
from llava_jax.train.evaluate import Evaluator, answer
from llava_jax.train.state import abstract_state
from tests.fixtures.decoding import pictures
from tests.fixtures.tiny_models import EVEN, random_params

STAGE = Stage(batch=2, data=Data(template="plain", max_images=1), eval=Eval(max_new_tokens=20))


def main(coordinator: str, count: int, index: int) -> list[str]:
    """Three questions in batches of two rows, so that the last batch has a padding row."""
    if count > 1:
        jax.distributed.initialize(coordinator, count, index, cluster_detection_method="deactivate")
    with jax.set_mesh(mesh := make_mesh(1, count, 1)):
        layout = abstract_state(EVEN, dict.fromkeys(random_params(EVEN)), optax.identity(), mesh).frozen
        params = {
            path: jax.make_array_from_callback(x.shape, layout[path].sharding, x.__getitem__)
            for path, x in random_params(EVEN).items()
        }
        evaluator = Evaluator(Llava(EVEN), params, STAGE, open_tokenizer("tiny"), mesh, lambda: False)
        turns = (("human", "<image>"), ("gpt", "x"))
        return answer(evaluator, [Example("1", turns, (Image.fromarray(image),)) for image in pictures(3)], blank=False)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
