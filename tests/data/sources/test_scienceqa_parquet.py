"""ScienceQA as Parquet: equal to the original's folder except for its ids."""

import json
import pickle
import sys

import pytest

from llava_jax.__main__ import main
from llava_jax.data.sources.open_source import open_source
from llava_jax.data.sources.scienceqa import ScienceQA, is_scienceqa
from llava_jax.errors import ConfigError, DataError
from llava_jax.evaluation.questions import PredictOptions, build_questions
from llava_jax.evaluation.scienceqa.task import ScienceQATask
from tests.fixtures.images import encoded, noise
from tests.fixtures.scienceqa import PLAIN, write_folder

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = {"train": "train", "val": "validation", "test": "test"}


def write_both(folder):
    """Writes seven problems as the original's folder and as the hub's Parquet -> (original, parquet)."""
    changes = {}
    for i in range(7):
        split = ("train", "val", "test")[i % 3]
        changes[str(9 - i)] = {"question": f"Which is {i}?", "hint": "Look." * (i % 2), "split": split, "answer": i % 3}
    for pid in ("9", "7", "5"):
        changes[pid]["image"] = "image.png"
    original, hub = write_folder(folder / "original", changes), folder / "hub"
    (hub / "data").mkdir(parents=True)
    rows = {split: [] for split in NAMES}
    for pid, change in changes.items():
        row = PLAIN | change | {"task": "closed choice", "category": "c", "skill": "s"}
        split = row.pop("split")
        if row["image"]:
            content = encoded(noise(20, 20, int(pid)), "PNG")
            file = original / "images" / split / pid / "image.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
            row["image"] = {"bytes": content, "path": "image.png"}
        rows[split].append(row)
    for split, part in rows.items():
        write(hub / "data" / f"{NAMES[split]}-00000-of-00001-1028.parquet", part)
    return original, hub


def write(path, rows):
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.Table.from_pylist([{key: row[key] for key in row if key != "image"} for row in rows])
    images = pyarrow.array([row["image"] for row in rows], image)
    parquet.write_table(table.append_column("image", images), path, row_group_size=2)


def texts(example):
    return example.turns, tuple(i if isinstance(i, bytes) else i.read_bytes() for i in example.images)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_parquet_equals_the_original_folder_except_for_ids(tmp_path, split):
    original, hub = write_both(tmp_path)
    before, after = open_source(original, split=split), open_source(hub, split=NAMES[split], prompt_format="QCM-LEA")
    after = pickle.loads(pickle.dumps(after))
    assert [texts(before[i]) for i in range(len(before))] == [texts(after[i]) for i in range(len(after))]
    assert [after[i].id for i in range(len(after))] == [f"{split}-{i}" for i in range(len(after))]
    assert all(after.part(i) == split for i in range(len(after)))
    problems = [source.problem(1) for source in (before, after)]
    assert len({(p.question, p.choices, p.answer, p.hint, p.subject, p.topic, p.grade) for p in problems}) == 1


def test_every_layout_of_the_files_is_recognized(tmp_path):
    _, hub = write_both(tmp_path)
    (file,) = (hub / "data").glob("test-*")
    for path, count in ((hub, 7), (hub / "data", 7), (file, 2)):
        assert is_scienceqa(path) and len(ScienceQA(path)) == count


@pytest.mark.parametrize("form", ["struct without a path", "struct of nulls", "bytes"])
def test_images_are_recognized_in_every_form(tmp_path, form):
    cells = {
        "struct without a path": [{"bytes": b"x"}, None],
        "struct of nulls": [{"bytes": b"x", "path": None}, {"bytes": None, "path": None}],
        "bytes": [b"x", None],
    }[form]
    row = {key: PLAIN[key] for key in ("question", "choices", "answer")}
    table = pyarrow.Table.from_pylist([row, row]).append_column("image", pyarrow.array(cells))
    parquet.write_table(table, tmp_path / "test.parquet")
    source = ScienceQA(tmp_path, "test")
    assert [source[i].images for i in range(2)] == [(b"x",), ()]


def test_evaluation_and_check_use_the_images_inside(tmp_path, capsys):
    _, hub = write_both(tmp_path)
    questions, missing = build_questions(ScienceQATask(ScienceQA(hub, "test")), PredictOptions())
    assert [bool(question.image) for question in questions] == [True, False] and not missing
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"question_id": q.pid, "text": "A"}) + "\n" for q in questions))
    page = tmp_path / "page.html"
    command = ["eval", "scienceqa", "score", str(answers), "--problems", str(hub), "--page", str(page)]
    assert main(command) == 0 and page.read_text().count("<img") == 1
    assert main(["data", "check", str(hub), "--report-folder", str(tmp_path / "r"), "--workers", "0"]) == 0
    assert "7 rows, 3 images" in capsys.readouterr().out
    assert main(["data", "scienceqa", str(hub), str(tmp_path / "x.json"), "--split", "test"]) == 2
    assert "its images are inside of Parquet" in capsys.readouterr().err


def test_faults_of_the_files_are_named(tmp_path, monkeypatch):
    _, hub = write_both(tmp_path)
    (file,) = (hub / "data").glob("test-*")
    with pytest.raises(ConfigError, match="there is no split 'dev', only test, train, val"):
        ScienceQA(hub, "dev")
    wrong = file.rename(file.with_name("questions.parquet"))
    with pytest.raises(DataError, match="questions.parquet: its name must begin with its split"):
        ScienceQA(hub)
    wrong.unlink()
    row = {key: PLAIN[key] for key in ("question", "choices")}
    parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    with pytest.raises(DataError, match="test.*needs the columns question and choices and answer; it has"):
        ScienceQA(hub)
    parquet.write_table(pyarrow.Table.from_pylist([row | {"answer": 7}]), file)
    with pytest.raises(DataError, match="hub: problem test-0: .*is 7, not the index of a choice"):
        ScienceQA(hub, "test")[0]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pip install"):
        ScienceQA(hub)
