"""Makes the tiny LLaVA that ships with the package, and the examples of the chat page.

    python launch/local/make_tiny_llava.py

Trains the quickstart with a longer second stage, in minutes; it resumes if it was stopped. Then it writes
llava_jax/pretrained/llava/ (Hugging Face's format, bfloat16, with a model card) and llava_jax/serve/page/examples/.
It prints the accuracy of the exported model on held-out scenes, and writes nothing if that is too low.
"""

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

import llava_jax
from llava_jax.api.model import LlavaModel
from llava_jax.checkpoint.built_in import built_in_model
from llava_jax.config import Data, Eval, Stage
from llava_jax.data.sources.scene_world import Scene, SceneQuestion, draw_scene, questions, render_scene
from llava_jax.data.sources.scenes import exam
from llava_jax.models.llava import Llava
from llava_jax.runtime.mesh import make_mesh
from llava_jax.serve.examples import SCENES
from llava_jax.train.evaluate import Evaluator
from llava_jax.train.scene_exam import accuracy, format_accuracy

ROOT = Path(__file__).resolve().parents[2]
WORKDIR = "workdir/tiny-llava"
STEPS = 2500  # of stage 2
EXAM_SEED, PER_KIND = 1, 256  # the run's own exam has seed 0
LOWEST, LOWEST_OVERALL = 85.0, 95.0  # percent
EXAMPLE_SEED, EXAMPLE_KINDS, EXAMPLE_SIDE = 2, ("count", "position", "relation", "reasoning"), 336
CARD = """\
---
license: apache-2.0
library_name: llava_jax
pipeline_tag: image-text-to-text
---
# A tiny LLaVA for synthetic scenes

{parameters} parameters, trained on the synthetic scenes of `llava_jax/data/sources/scene_world.py`: one to four colored
shapes in a 3x3 grid. It knows only the words of these scenes, in lower case and with spaces around punctuation (`where
is the yellow triangle ?`), and is of no use for photographs. Its purpose is to try `chat` without a download.

- Command: `python launch/local/make_tiny_llava.py`, which runs `{command}`
- Checkpoint: step {step} of the run (llava_jax {llava_jax}, jax {jax}, Python {python}, {devices} {kind} device)
- Towers: those beside this folder, which `configs/tiny_towers.py` trains from random weights
- Format: Hugging Face's `LlavaForConditionalGeneration`, bfloat16, by `python -m llava_jax convert --to hf`
- Conversation template: `{template}`

Accuracy in percent of the files in this folder, computed in bfloat16, over {per_kind} questions of each kind about
held-out scenes (seed {seed}). `blanked`: with a uniform image. Of answers with a reason, only the conclusion is graded.

```
{table}
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / WORKDIR, help="of the training run")
    workdir = parser.parse_args().workdir.resolve()
    run_verb(*training_command(workdir))
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "llava"
        run_verb("convert", str(workdir), str(exported), "--to", "hf", "--dtype", "bfloat16")
        models = load_both(exported)
        table = measure(models[0])
        print("\n".join(format_accuracy(table, None)), flush=True)
        if table["overall"]["image"] < LOWEST_OVERALL or min(row["image"] for row in table.values()) < LOWEST:
            sys.exit(f"error: below {LOWEST_OVERALL}% overall or {LOWEST}% of a kind; nothing is written")
        write_examples(models, SCENES)
        (exported / "README.md").write_text(model_card(workdir, models[0], table), encoding="utf-8")
        shutil.rmtree(built_in_model(), ignore_errors=True)
        shutil.copytree(exported, built_in_model())
    size = sum(file.stat().st_size for file in built_in_model().iterdir())
    print(f"{built_in_model()}: {size:,} bytes")


def training_command(workdir: Path | str) -> list[str]:
    flags = [f"--workdir={workdir}", f"--config.stages.stage2.steps={STEPS}"]
    return ["train", "--config=configs/quickstart.py", *flags]


def run_verb(*arguments: str) -> None:
    """Runs a verb in a process of its own. Ends this program with its exit code if it fails."""
    code = subprocess.run([sys.executable, "-m", "llava_jax", *arguments], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def load_both(folder: Path) -> list[LlavaModel]:
    """The model as it computes in bfloat16 and in float32, on one device: more cost such a small model time."""
    mesh = make_mesh(1, -1, 1, jax.devices()[:1])
    return [llava_jax.load(folder, dtype=dtype, mesh=mesh) for dtype in ("bfloat16", "float32")]


def measure(model: LlavaModel, per_kind: int = PER_KIND) -> dict[str, dict[str, float]]:
    """The accuracy table of `scene_exam.accuracy` on held-out scenes."""
    stage = Stage(data=Data(template=model.template, aspect=model.aspect), eval=Eval(), batch=32)
    evaluator = Evaluator(
        Llava(model.config), model.params, stage, model.tokenizer, model.mesh, should_stop=lambda: False
    )
    return accuracy(evaluator, exam(EXAM_SEED, model.config.image_size, per_kind))


def write_examples(models: list[LlavaModel], folder: Path) -> None:
    """Writes one held-out scene for each of EXAMPLE_KINDS, and examples.json with a question and the true answer.
    Scenes of which a model answers the question wrong are skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    examples, indices = [], itertools.count()
    for number, kind in enumerate(EXAMPLE_KINDS, start=1):
        for index in indices:
            scene, question = draw_example(index, kind)
            image = render_scene(scene, EXAMPLE_SIDE)
            if all(model.chat(question.text, images=[image]) == question.answer for model in models):
                break
            print(f"scene {index}: {question.text} is answered wrong; skipped", flush=True)
        name = f"scene-{number}.png"
        image.save(folder / name, optimize=True)
        examples.append({"image": name, "question": question.text, "answer": question.answer})
    (folder / "examples.json").write_text(json.dumps(examples, indent=1) + "\n", encoding="utf-8")


def draw_example(index: int, kind: str) -> tuple[Scene, SceneQuestion]:
    """A held-out scene of three or four objects, and a question of this kind about it."""
    scenes = (draw_scene(EXAMPLE_SEED, 1000 * index + i, held_out=True) for i in itertools.count())
    scene = next(scene for scene in scenes if len(scene.objects) > 2)
    of_scene = questions(scene, random.Random(f"example/{index}"))
    return scene, next(question for question in of_scene if question.kind == kind)


def model_card(workdir: Path, model: LlavaModel, table: dict[str, dict[str, float]]) -> str:
    """The text of README.md. Versions and devices are those of the run."""
    metadata = json.loads((workdir / "metadata.json").read_text(encoding="utf-8"))
    step = max(int(folder.name) for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit())
    command = " ".join(["python -m llava_jax", *training_command(WORKDIR)])
    return CARD.format(
        parameters=f"{sum(x.size for x in jax.tree.leaves(model.params)):,}", command=command, step=step,
        **metadata["versions"], devices=metadata["devices"]["count"], kind=metadata["devices"]["kind"],
        template=model.template, per_kind=PER_KIND, seed=EXAM_SEED, table="\n".join(format_accuracy(table, None)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
