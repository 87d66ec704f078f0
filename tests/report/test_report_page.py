"""The HTML file: its size, its content, and hostile names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradkern.report import html
from gradkern.report.bins import Bins
from gradkern.report.data import columns_for
from gradkern.report.encode import BAD, NOTHING, ZERO, json_in_script, pack_matrix, plain
from gradkern.report.payload import payload
from tests.support.synthetic import HOSTILE, make_run


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def codes_of(packed: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), dtype="<u2").reshape(shape)


@pytest.fixture(scope="module")
def page_of_3000() -> str:
    return html.render(payload(make_run(3000, 100_000)))


def test_3000_parameters_and_100000_steps_stay_under_6_mb(page_of_3000: str) -> None:
    assert len(page_of_3000.encode()) < 6e6
    assert len(data_of(page_of_3000)["names"]) == 3000


def test_20000_parameters_stay_under_6_mb_too() -> None:
    assert len(html.render(payload(make_run(20_000, 5_000))).encode()) < 6e6


@pytest.mark.parametrize(("rows", "columns"), [(1, 1000), (3000, 466), (20_000, 70), (10**6, 16)])
def test_the_heatmap_gets_fewer_columns_the_more_rows_it_has(rows: int, columns: int) -> None:
    assert columns_for(rows) == columns


def test_the_page_asks_for_nothing_outside_itself(page_of_3000: str) -> None:
    markup = re.sub(r"<script.*?</script>|<style>.*?</style>", "", page_of_3000, flags=re.DOTALL)
    assert not re.search(r"\b(src|href|action|on\w+)=", markup)
    page_of_3000 = page_of_3000.replace(
        "https://github.com/leeoniya/uPlot (v", "(v"
    )  # a comment that names its origin
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|innerHTML", page_of_3000)
    assert "default-src 'none'" in page_of_3000


def test_the_policy_allows_this_script_and_style_and_no_other(page_of_3000: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", page_of_3000, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page_of_3000, re.DOTALL)
    assert len(scripts) == len(styles) == 1
    for kind, text in (("script-src", scripts[0]), ("style-src", styles[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in page_of_3000


def test_a_hostile_name_stays_text() -> None:
    run = make_run(4, 30)
    object.__setattr__(run, "names", (HOSTILE, HOSTILE + "2", "]]>", "plain"))
    object.__setattr__(run, "title", HOSTILE)
    page = html.render(payload(run))
    assert page.count("</script>") == 2  # the page's own two
    assert "<img" not in page
    assert "\x1b" not in page
    assert data_of(page)["names"][0] == HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


def test_names_of_any_length_leave_the_page_small() -> None:
    run = make_run(100, 30)
    object.__setattr__(run, "names", tuple(f"{i}" + "x" * 100_000 for i in range(100)))
    assert len(html.render(payload(run))) < 400_000


def test_json_survives_the_script_element() -> None:
    value = {"<!--": ["</ScRiPt>", "&", "\u2028\u2029\ud800", 1e-300]}
    text = json_in_script(value)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == value


def test_floats_that_json_lacks() -> None:
    assert plain([1.5, float("nan"), float("inf"), -float("inf")]) == [1.5, None, "Infinity", "-Infinity"]


def test_packed_values_come_back_to_a_thousandth(rng: np.random.Generator) -> None:
    values = (10 ** rng.uniform(-30, 30, (7, 11))).astype(np.float64)
    packed = pack_matrix(values, np.zeros(values.shape, dtype=bool))
    codes = codes_of(packed, values.shape).astype(np.float64)
    back = packed["lo"] + (codes - 2) * (packed["hi"] - packed["lo"]) / 65532
    np.testing.assert_allclose(10**back, values, rtol=1.2e-3)  # 60 decades in 65,533 levels


def test_packed_special_cells() -> None:
    values = np.array([[np.nan, 0.0, np.inf, 2.0, 2.0]], dtype=np.float32)
    bad = np.array([[False, False, False, False, True]])
    assert codes_of(pack_matrix(values, bad), (1, 5)).tolist() == [[NOTHING, ZERO, BAD, 2, BAD]]


def test_packing_nothing_ordinary() -> None:
    packed = pack_matrix(np.full((2, 2), np.nan), np.ones((2, 2), dtype=bool))
    assert codes_of(packed, (2, 2)).tolist() == [[BAD, BAD], [BAD, BAD]]
    assert packed["hi"] > packed["lo"]


def test_bins_keep_the_extremes_and_forget_no_record(rng: np.random.Generator) -> None:
    steps = np.cumsum(rng.integers(1, 5, 1003))
    values = rng.standard_normal(1003)
    values[[10, 500]] = np.nan, np.inf
    bins = Bins.of(steps, 100)
    low, _, high = bins.spread(values)
    assert len(bins) == 100
    assert bins.count(np.ones(1003, dtype=bool)).sum() == 1003
    finite = values[np.isfinite(values)]
    assert np.nanmin(low) == finite.min()
    assert np.nanmax(high) == finite.max()
    assert bins.first[0] == steps[0]
    assert bins.last[-1] == steps[-1]


def test_a_bin_of_nothing_finite_is_nan_and_no_share_of_nothing() -> None:
    bins = Bins.of(np.arange(4), 2)
    assert np.isnan(bins.spread(np.array([np.nan, np.inf, 1.0, 3.0]))).tolist() == [[True, False]] * 3
    known = np.array([False, False, True, True])
    assert bins.share(np.array([True, True, True, False]), known).tolist()[1] == 0.5
    assert len(Bins.of(np.zeros(0, dtype=np.int64), 10)) == 0


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("before")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        html.write(payload(make_run(2, 5)), target)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]
