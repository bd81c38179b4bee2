"""python -m llava_jax data build|captions: files written, resuming, and rejected arguments."""

import fcntl
import io
import json
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_jax.__main__ import main
from llava_jax.data import write_shards
from llava_jax.data.sources.array_record import ArrayRecordSource
from llava_jax.data.sources.caption_pairs import INSTRUCTIONS, caption_row
from llava_jax.data.sources.combine import train_eval_split
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.data.sources.open_source import open_source


def png(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def write_json(path: Path, rows: int, missing=()) -> None:
    images = path.parent / "images"
    images.mkdir(exist_ok=True)
    data = []
    for i in range(rows):
        talk = [{"from": "human", "value": f"<image>\nWhat is {i}?"}, {"from": "gpt", "value": f"It is {i}."}]
        data.append({"id": f"{path.stem}-{i}", "image": f"{i}.png", "conversations": talk})
        if i not in missing:
            (images / f"{i}.png").write_bytes(png(i))
    path.write_text(json.dumps(data))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build(*args) -> int:
    return main(["data", "build", *map(str, args)])


@pytest.fixture
def data(tmp_path) -> Path:
    write_json(tmp_path / "a.json", 10)
    return tmp_path


def test_built_shards_contain_the_source_samples(data, capsys):
    write_json(data / "b.json", 3)
    roots = ["--images", data / "images"]
    assert build(data / "a.json", data / "b.json", data / "out", *roots, "--shard-rows", 4) == 0
    assert "13 records in 4 shards, 0 samples left out" in capsys.readouterr().out
    files = {"manifest.json", "ids.npy", "left_out.jsonl"} | {f"shard-0000{i}-of-00004.array_record" for i in range(4)}
    assert contents(data / "out").keys() == files
    source = open_source(data / "out")
    before = [open_source(data / name, data / "images") for name in ("a.json", "b.json")]
    before = [example for source in before for example in (source[i] for i in range(len(source)))]
    assert [(e.id, e.turns) for e in (source[i] for i in range(13))] == [(e.id, e.turns) for e in before]
    assert [source[i].images[0] for i in range(13)] == [e.images[0].read_bytes() for e in before]

    assert build(data / "out", data / "a.json", data / "again", "--images", "", "--images", data / "images") == 0
    again = open_source(data / "again")
    assert len(again) == 23 and again[12].images == source[12].images


def test_build_preserves_the_held_out_split(data):
    write_json(data / "a.json", 60)
    build(data / "a.json", data / "out", "--images", data / "images", "--shard-rows", 16)
    before = train_eval_split(LlavaJson(data / "a.json", data / "images"), 0.2, 0)[1]
    after = train_eval_split(ArrayRecordSource(data / "out"), 0.2, 0)[1]
    assert before.indices.tolist() == after.indices.tolist() and 0 < len(after) < 30


class Killed(BaseException):
    pass


def test_build_resumes_byte_equal_after_any_interrupted_rename(data, monkeypatch):
    write_json(data / "a.json", 10, missing=(3, 6))
    call = [data / "a.json", data / "out", "--images", data / "images", "--shard-rows", 4, "--bad", "skip"]
    build(*call)
    whole = contents(data / "out")
    assert len(whole) == 6
    replace, steps = Path.replace, 0

    def until(limit, is_done):
        def counted(path, target):
            nonlocal steps
            if steps == limit and not is_done:
                raise Killed
            replace(path, target)
            steps += 1
            if steps == limit + 1 and is_done:
                raise Killed

        return counted

    killed = 0
    for limit in range(10):
        for is_done in (False, True):
            for path in (data / "out").iterdir():
                path.unlink()
            steps = 0
            monkeypatch.setattr(Path, "replace", until(limit, is_done))
            try:
                build(*call)
            except Killed:
                killed += 1
            monkeypatch.setattr(Path, "replace", replace)
            assert build(*call) == 0
            assert contents(data / "out") == whole, f"killed at step {limit}"
    assert killed == 2 * (3 * 2 + 3), "each shard and its metadata, ids, left_out.jsonl, manifest"


SLOWLY = """
import sys, time
from llava_jax.data import write_shards as shards
record = shards._record
shards._record = lambda *args: time.sleep(0.02) or record(*args)
from llava_jax.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_build_resumes_with_finished_shards_after_sigkill(data):
    write_json(data / "a.json", 28)
    call = ["--images", str(data / "images"), "--shard-rows", "4", "--threads", "1"]
    build(data / "a.json", data / "whole", *call)
    rng, kills = random.Random(0), 0
    for _ in range(20):
        command = [sys.executable, "-c", SLOWLY, "data", "build", str(data / "a.json"), str(data / "out"), *call]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        before = len(list((data / "out").glob("*.array_record"))) if (data / "out").exists() else 0
        while process.poll() is None and len(list((data / "out").glob("*.array_record"))) < before + 3:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.08)
        if process.poll() is not None:
            break
        process.kill()
        kills += 1
        process.wait()
    assert process.returncode == 0 and kills >= 2
    assert contents(data / "out") == contents(data / "whole")


def test_full_disk_is_one_line_and_the_build_resumes(data, capsys):
    call = [data / "a.json", data / "out", "--images", data / "images", "--shard-rows", 4]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        assert build(*call) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = r"error: .*out cannot be written \(.*File too large.*same command to resume\n"
    assert re.fullmatch(message, capsys.readouterr().err)
    assert build(*call) == 0 and len(ArrayRecordSource(data / "out")) == 10


def test_resume_rewrites_only_missing_or_damaged_shards(data, monkeypatch):
    call = [data / "a.json", data / "out", "--images", data / "images", "--shard-rows", 2]
    finish = write_shards._finish
    monkeypatch.setattr(write_shards, "_finish", lambda *args: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        build(*call)
    monkeypatch.setattr(write_shards, "_finish", finish)
    damaged = data / "out" / "shard-00002-of-00005.array_record"
    whole = contents(data / "out")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    (data / "out" / "shard-00004-of-00005.array_record").unlink()
    written = []
    write = write_shards._write
    monkeypatch.setattr(
        write_shards, "_write", lambda source, shard, *rest: written.append(shard.name) or write(source, shard, *rest)
    )
    assert build(*call) == 0
    assert written == ["shard-00002-of-00005.array_record", "shard-00004-of-00005.array_record"]
    assert contents(data / "out").items() >= {k: v for k, v in whole.items() if k.endswith("record")}.items()
    assert build(*call) == 0, "a complete folder is not changed"
    assert len(written) == 2


def test_bad_sample_fails_the_build_or_is_skipped_and_listed(data, capsys):
    write_json(data / "a.json", 10)
    (data / "images" / "4.png").write_bytes(png(4)[:-30])
    (data / "images" / "7.png").unlink()
    call = [data / "a.json", data / "out", "--images", data / "images", "--shard-rows", 5]
    assert build(*call) == 2
    assert "error: sample 'a-4': " in (err := capsys.readouterr().err) and "4.png" in err and "--bad skip" in err
    assert build(*call, "--bad", "skip") == 2, "started with another flag"
    assert "started with other data or flags (skip_bad differ)" in capsys.readouterr().err
    assert build(data / "a.json", data / "new", *call[2:], "--bad", "skip") == 0
    lines = [json.loads(line) for line in (data / "new" / "left_out.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [4, 7] and "7.png: no such file" in lines[1]["fault"]
    source = ArrayRecordSource(data / "new")
    assert [source[i].id for i in range(len(source))] == [f"a-{i}" for i in (0, 1, 2, 3, 5, 6, 8, 9)]
    assert len(source.id_hashes()) == 8


def test_build_fails_if_every_sample_is_skipped(data, capsys):
    for image in (data / "images").iterdir():
        image.unlink()
    assert build(data / "a.json", data / "out", "--images", data / "images", "--bad", "skip") == 2
    assert "every sample is left out; the first: sample 'a-0'" in capsys.readouterr().err


def test_out_folder_with_other_files_or_data_is_rejected(data, capsys):
    call = [data / "a.json", data / "out", "--images", data / "images"]
    (data / "mine").mkdir()
    (data / "mine" / "thesis.txt").write_text("x")
    assert build(data / "a.json", data / "mine", *call[2:]) == 2
    assert "mine holds other files" in capsys.readouterr().err
    assert contents(data / "mine") == {"thesis.txt": b"x"}
    assert build(*call) == 0
    whole = contents(data / "out")
    write_json(data / "a.json", 9)
    assert build(*call) == 2
    assert "out was built with other data or flags (from, examples differ)" in capsys.readouterr().err
    assert contents(data / "out") == whole
    (data / "file").write_text("x")
    assert build(data / "a.json", data / "file", *call[2:]) == 2
    assert "file cannot be written (File exists)" in capsys.readouterr().err


def test_out_folder_is_locked_by_one_build(data, capsys):
    (data / "out").mkdir()
    with open(data / "out" / "building.json", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert build(data / "a.json", data / "out", "--images", data / "images") == 2
    assert "another process is building it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [(["a.json"], "at least two paths"), (["a.json", "out", "--shard-rows", "0"], "must be at least 1"),
     (["a.json", "out"], "a.json: row 0 names the image '0.png', so the data needs image_folder"),
     (["no.json", "out", "--images", "images"], "no.json: cannot be read"),
     (["images", "out"], "images: a folder without .array_record or .parquet"),
     (["a.json", "gs://bucket/out", "--images", "images"], "paths: gs:/bucket/out is a URL"),
     (["a.json", "out", "--images", "x", "--images", "y"], "2 --images for 1 SRC")],
)  # fmt: skip
def test_bad_arguments_are_rejected_and_write_nothing(data, monkeypatch, args, message, capsys):
    monkeypatch.chdir(data)
    assert build(*args) == 2
    assert message in capsys.readouterr().err and not (data / "out").exists()


# --- captions ------------------------------------------------------------


def captions(*args) -> int:
    return main(["data", "captions", *map(str, args)])


PAIRS = [{"image": f"{i}.jpg", "caption": f" A thing, number {i}.\u2028 ", "score": 1} for i in range(400)]


def write_pairs(path: Path, pairs, lines=True) -> Path:
    text = "\n".join(json.dumps(p, ensure_ascii=False) for p in pairs) + "\n\n" if lines else json.dumps(pairs)
    path.write_text(text, encoding="utf-8")
    return path


def test_captions_become_valid_llava_rows(tmp_path):
    assert captions(write_pairs(tmp_path / "p.jsonl", PAIRS), tmp_path / "new" / "chat.json") == 0
    source = LlavaJson(tmp_path / "new" / "chat.json", tmp_path)
    assert [(source[i].id, source[i].images[0].name) for i in (0, 399)] == [("0", "0.jpg"), ("399", "399.jpg")]
    assert source[7].turns[1] == ("gpt", "A thing, number 7.")
    raw = [row["conversations"][0]["value"] for row in json.loads((tmp_path / "new" / "chat.json").read_text())]
    before = [text.removeprefix("<image>\n") for text in raw if text.startswith("<image>\n")]
    behind = [text.removesuffix("\n<image>") for text in raw if text.endswith("\n<image>")]
    assert set(before) == set(behind) == set(INSTRUCTIONS) and len(set(INSTRUCTIONS)) == 11
    assert len(before) + len(behind) == 400 and 150 < len(before) < 250


def test_caption_rows_are_deterministic_and_independent_of_other_rows(tmp_path):
    for name, pairs, lines in (("a", PAIRS, True), ("b", PAIRS[::-1][:100], False)):
        captions(write_pairs(tmp_path / name, pairs, lines), tmp_path / f"{name}.json", "--seed", 3)
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert a[300:] == b[::-1]
    assert [caption_row("x/1.jpg", "A cat.", seed)["conversations"][0]["value"] for seed in (0, 1, 2)] == GOLDEN
    assert caption_row("x/1.jpg", "A cat.", 0)["id"] == "x/1"


GOLDEN = [
    "<image>\nName the main content of the photo in a short sentence.",
    "In short, what does this picture contain?\n<image>",
    "<image>\nSum up the picture in one sentence.",
]


def test_captions_reads_utf_16_and_names_what_is_no_text(tmp_path, capsys):
    (tmp_path / "p").write_bytes('{"image": "a.jpg", "caption": "é"}\r\n'.encode("utf-16"))
    assert captions(tmp_path / "p", tmp_path / "out.json") == 0
    assert LlavaJson(tmp_path / "out.json", tmp_path)[0].turns[1] == ("gpt", "é")
    (tmp_path / "p").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert captions(tmp_path / "p", tmp_path / "new.json") == 2 and "git lfs pull" in capsys.readouterr().err
    assert captions("https://host/p", tmp_path / "new.json") == 2 and "is a URL" in capsys.readouterr().err
    assert captions(tmp_path / "pp", tmp_path / "new.json") == 2 and "; there is p" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no pairs"), ('{"image": "a", "image": "b"}', "line 1: not JSON (the key 'image' occurs twice)"),
     ("[]", "no pairs"), ("{}", 'line 1: key "image"'), ("[3]", 'row 0: key "image"'),
     ("{", "line 1: not JSON"), ('{"image": "a.jpg", "caption": " "}', 'line 1: key "caption" must be a string'),
     ('\n{"image": "", "caption": "x"}', 'line 2: key "image"'),
     ('{"image": "a", "caption": "\\ud83d"}', 'line 1: key "caption" has a lone surrogate')],
)  # fmt: skip
def test_invalid_pairs_are_named(tmp_path, text, message, capsys):
    (tmp_path / "pairs").write_text(text)
    assert captions(tmp_path / "pairs", tmp_path / "out.json") == 2
    assert f"pairs: {message}" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["pairs"]


def test_captions_rejects_missing_images_and_existing_output(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "p", PAIRS[:3])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"x")
    assert captions(pairs, tmp_path / "out.json", "--images", tmp_path / "images") == 2
    assert "2 of 3 images are not in" in (err := capsys.readouterr().err) and "the first: '0.jpg'" in err
    (tmp_path / "out.json").write_text("mine")
    assert captions(pairs, tmp_path / "out.json") == 2
    assert "out.json exists already" in capsys.readouterr().err and (tmp_path / "out.json").read_text() == "mine"


def test_real_captions_become_shards(real_data, tmp_path):
    images = real_data / "captioned_images" / "images"
    assert captions(real_data / "captioned_images" / "captions.jsonl", tmp_path / "chat.json", "--images", images) == 0
    source = LlavaJson(tmp_path / "chat.json", images)
    assert len(source) == 1712 and source[0].images[0].is_file()
    lines = (tmp_path / "chat.json").read_text().splitlines()
    (tmp_path / "few.json").write_text("[" + json.dumps(json.loads("\n".join(lines))[:20])[1:])
    assert build(tmp_path / "few.json", tmp_path / "out", "--images", images, "--shard-rows", 8) == 0
    built = open_source(tmp_path / "out")
    assert built[19].images[0] == source[19].images[0].read_bytes()
