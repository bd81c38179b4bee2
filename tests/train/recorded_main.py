"""`python -m llava_jax.main` that also records the data of this process: for each batch it appends a line [global step,
indices of its rows] to $BATCHES.PROCESS. $PAUSE: seconds before each step, so that a signal arrives before the last.
$FAILS="PROCESS STEP": this process fails at this step with a DataError. $HANGS: reading this image file never returns.
"""

import json
import os
import sys
import time

import jax

from llava_jax.cli.train import main
from llava_jax.data import bad_samples, rows
from llava_jax.data.pipeline import Batches
from llava_jax.errors import DataError
from llava_jax.train import steps

next_batch, global_batch, record = Batches.__next__, steps.global_batch, bad_samples.BadSampleLog.record
load_image = rows.load_image
newest = []


def remember(self):
    batch, info = next_batch(self)
    newest[:] = info.index.tolist()
    return batch, info


def pause(batch, mesh):
    time.sleep(float(os.environ["PAUSE"]))
    return global_batch(batch, mesh)


def write_down(self, step, replaced):
    with open(f"{os.environ['BATCHES']}.{jax.process_index()}", "a", encoding="utf-8") as file:
        file.write(json.dumps([step, newest]) + "\n")
    if os.environ.get("FAILS") == f"{jax.process_index()} {step}":
        raise DataError("planted")
    record(self, step, replaced)


def read(source, name, exif):
    if os.environ.get("HANGS") == os.path.basename(name):
        time.sleep(10_000)
    return load_image(source, name, exif)


Batches.__next__, steps.global_batch = remember, pause
bad_samples.BadSampleLog.record, rows.load_image = write_down, read
sys.exit(main(sys.argv))
