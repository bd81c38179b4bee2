import os
import re
from functools import partial

import pytest

from llava_jax.data.inspection.stats import Measured, Stats, measure_rows
from llava_jax.data.inspection.stats_page import stats_page
from llava_jax.data.sources.llava_json import LlavaJson
from llava_jax.data.sources.scienceqa import ScienceQA
from llava_jax.errors import DataError
from llava_jax.text.encode import encode_row
from llava_jax.text.tokenizer import load_tokenizer
from tests.fixtures.faulty_dataset import plant
from tests.fixtures.tokenizers import TINY

ENCODE = partial(encode_row, tokenizer=TINY, template="vicuna_v1", features=16)


def test_a_row_is_measured_without_decoding_its_image(tmp_path):
    plant(tmp_path)
    os.mkfifo(tmp_path / "images" / "nowhere.jpg")  # opening it would block
    source = LlavaJson(tmp_path / "train.json", tmp_path / "images", is_strict=False)
    measured = measure_rows(range(len(source)), source=source, encode=ENCODE)
    ids, mask = ENCODE((("human", "<image>\nwhat is good 0 ?"), ("gpt", "it is good 0")), 1)
    assert measured[0] == Measured(len(ids), int(mask.sum()), 1, ((24, 18),))
    by_id = {source.raw(i)[0]["id"]: m for i, m in enumerate(measured) if m}
    assert by_id["half.jpg"].sizes == ((64, 64),)  # its header is valid
    assert by_id["no file"].sizes == by_id["a folder"].sizes == by_id["empty.jpg"].sizes == ()
    assert by_id["text alone"].images == 0
    assert measured.count(None) == 12  # broken JSON, 5 broken rows, 3 of role order, 3 placeholder mismatches


def stats() -> Stats:
    rows = [Measured(50, 10, 1, ((40, 20),)), Measured(150, 30, 0, ()), None, Measured(25, 5, 1, ())]
    return Stats.of(rows, length=100, max_images=2)


def test_statistics_of_a_small_data_set():
    padded, packed = stats().fullness()
    assert padded == pytest.approx((50 + 100 + 25) / 3) and packed == pytest.approx(100 * 175 / 200)
    text = "\n".join(stats().lines())
    assert re.search(r"tokens +75\.0 +25 .* 150\n", text) and re.search(r"supervised % +20\.0 +20\.0 ", text)
    assert "3 samples, 225 tokens, 45 of them supervised" in text
    assert "1 rows cannot be read, 1 of 2 images cannot be read" in text
    assert "1 samples are longer than 100" in text and "58.3% full with one sample each, 87.5% packed" in text
    with pytest.raises(DataError, match="no row can be read"):
        Stats.of([None], 100, 1)


def test_page_has_table_and_plots_and_is_deterministic():
    page = stats_page("<b>x</b>", stats())
    assert page == stats_page("<b>x</b>", stats())
    assert "<b>" not in page and page.count("<svg") == 4 and "58.3% full" in page
    assert 'style="--at:58.33%"' in page and 'style="--at:87.50%"' in page and 'style="--at:20.00%"' in page
    assert 'class="number">75.0<' in page and "#0102" not in page and "var(--fill)" in page
    assert not re.search(r'(href|src)="(?!data:|#)', page) and "<script" not in page
    no_images = Stats.of([Measured(50, 10, 0, ())], 100, 1)
    assert stats_page("x", no_images).count("<svg") == 3


def test_packing_real_lengths_fills_rows(real_data):
    source = ScienceQA(real_data / "scienceqa")
    encode = partial(ENCODE, tokenizer=load_tokenizer(real_data / "tokenizers" / "llama2.model"), features=256)
    measured = measure_rows(range(0, len(source), 4), source=source, encode=encode)
    padded, packed = Stats.of(measured, 2048, 8).fullness()
    assert padded < 30 and packed >= 90
