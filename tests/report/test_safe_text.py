"""Text from a run cannot control a terminal or a page."""

from __future__ import annotations

import html.parser

import numpy as np
import pytest
import torch

from gradkern import measure
from gradkern._util.text import clip_middle, fit, html_table, number, visible
from tests.support.synthetic import HOSTILE


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layers.0.weight", "layers.0.weight"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\u202egpj", "\\u202egpj"),
        ("\x9b2J", "\\x9b2J"),
        ("\ud800", "\\ud800"),
        ("größe.重み", "größe.重み"),
    ],
)
def test_what_steers_a_terminal_becomes_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_long_text_is_cut() -> None:
    assert visible("x" * 1000, 10) == "x" * 9 + "…"
    assert clip_middle("blocks.0.attn.weight", 11) == "blo….weight"
    assert clip_middle("short", 11) == "short"
    assert [clip_middle("blocks", width) for width in (0, 1, 2, 3)] == ["", "b", "bl", "…ks"]


@pytest.mark.parametrize("width", [6, 8, 12, 20, 30, 46, 100])
def test_names_that_are_cut_stay_different(width):
    deep = "base_model.model.model"
    names = [f"{deep}.layers.{i}.experts.{j}.w1.lora_A.weight" for i in range(24) for j in range(4)]
    names += [f"{deep}.layers.{i}.self_attn.{kind}_proj.weight" for i in range(24) for kind in "qkvo"]
    names += ["a" * 200, "a" * 200 + "b", "a" * 200 + "c", "short"]
    shown = fit(names, width)
    assert len(set(shown)) == len(names)
    assert max(map(len, shown)) <= width and shown[-1] == "short"


def test_the_part_that_differs_is_kept():
    names = [f"layers.{i}.self_attn.q_proj.lora_A.default.weight" for i in (1, 11)]
    assert fit(names, 24) == ["…1.self_attn…ault.weight", "…11.self_att…ault.weight"]
    assert fit([], 10) == [] and fit(["a.b", "c"], 10) == ["a.b", "c"]


def test_numbers_in_few_characters() -> None:
    assert [number(v) for v in (None, float("nan"), float("inf"), 0.0, 1234.5678)] == [
        "-", "NaN", "inf", "0", "1235",
    ]  # fmt: skip


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


TABLE = {"table", "caption", "b", "thead", "tbody", "tr", "th", "td"}


def test_a_table_has_no_tags_but_its_own() -> None:
    found = _Tags()
    found.feed(html_table(HOSTILE, ("name", HOSTILE), [(HOSTILE, "1")]))
    assert found.tags == TABLE
    assert found.text.count("</script><img") == 3
    assert "\x1b" not in found.text


def test_stats_have_an_html_table_with_escaped_names() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 0.5)
    text = measure([(HOSTILE, parameter)])._repr_html_()
    found = _Tags()
    found.feed(text)
    assert found.tags == TABLE
    assert "total_norm=1" in found.text
    assert "<img" not in text


def test_stats_with_many_rows_stay_small() -> None:
    parameters = [(f"p{i}", torch.nn.Parameter(torch.zeros(1))) for i in range(3000)]
    for _, parameter in parameters:
        parameter.grad = torch.ones(1)
    stats = measure(parameters)
    assert stats._repr_html_().count("<tr>") == 62
    assert "\x1b" not in str(measure([("\x1b[2J", parameters[0][1])]))
    assert np.isclose(stats.total_norm.item(), np.sqrt(3000))
