"""Tables line up, also with foreign names, on any terminal."""

import io
import sys

from jetkern.tables import mean_and_spread, show, table

ROWS = [["class", "jets"], ["QCD", "1,000"], ["H4q", "9"]]


def test_plain():
    assert table(ROWS).splitlines() == ["class   jets", "QCD    1,000", "H4q        9"]


def test_markdown():
    assert table(ROWS, markdown=True).splitlines() == [
        "| class |  jets |",
        "|-------|------:|",
        "| QCD   | 1,000 |",
        "| H4q   |     9 |",
    ]


def test_alignment_goes_on_with_its_last_letter():
    assert table([["a", "bb", "cc"], ["1", "2", "3"]], "rl").splitlines() == [
        "a  bb  cc",
        "1  2   3",
    ]


def test_names_with_control_characters_are_shown():
    assert table([["\x1b[2J"], ["x"]]).splitlines() == [r"\x1b[2J", "x"]


def test_a_terminal_without_the_characters_gets_others(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show("0.98 ± 0.01, ΔR")
    assert raw.getvalue() == b"0.98 +- 0.01, \\u0394R\n"


def test_a_number_has_three_figures():
    assert mean_and_spread([]) == ""
    assert mean_and_spread([123.4, 125.4]) == "124 ± 1"
    assert mean_and_spread([12.34]) == "12.3"
    assert mean_and_spread([1.234]) == "1.23"
    assert mean_and_spread([0.1234]) == "0.123"
    assert mean_and_spread([116_862]) == "116,862"
