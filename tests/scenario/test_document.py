"""YAML to data with positions. PyYAML's own loader is the independent reference for the plain values."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import yaml

from marl_tr.scenario.document import MAX_BYTES, dump_yaml, parse, read_document
from marl_tr.scenario.problems import Problem, ScenarioError


def fails(text: str) -> Problem:
    with pytest.raises(ScenarioError) as caught:
        parse(text, "f.yaml")
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [x, 2.5, true, null]\nc: {d: {e: '7'}}\n",
        "a: &x {p: 1, q: 2}\nb: *x\n",
        "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n",
        "a: &x {p: 1}\nb: &y {q: 2, p: 5}\nc: {<<: [*x, *y], r: 3}\n",
        "text: |\n  two\n  lines\nfolded: >\n  one\n  line\n",
        "- 1\n- {a: -3}\n",
    ],
)
def test_plain_documents_mean_what_pyyaml_says(text: str) -> None:
    assert parse(text, "f").data == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e6", 1_000_000),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("6.", 6.0),
        ("640_000", 640_000),
        ("1_0.2_5", 10.25),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("+7", 7),
        ("-.inf", -math.inf),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("1e", "1e"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("~", None),
        ("True", True),
    ],
)
def test_scalars_follow_yaml_1_2_with_underscores(text: str, value: object) -> None:
    data = parse(f"a: {text}", "f").data
    assert data == {"a": value}
    assert type(data["a"]) is type(value)


def test_every_key_and_value_has_its_position() -> None:
    document = parse("a: 1\nb:\n  - c: x\n", "f")
    key, value = document.keys[("b", 0, "c")], document.values[("b", 0, "c")]
    assert (key.line, key.column, key.source) == (3, 5, "  - c: x")
    assert (value.line, value.column) == (3, 8)


def test_a_merged_key_lies_where_it_is_written_and_an_own_key_wins() -> None:
    document = parse("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n", "f")
    assert document.data["use"] == {"y": 3, "x": 1}
    assert document.keys[("use", "x")].line == 1
    assert document.keys[("use", "y")].line == 4
    assert document.problems == []


def test_a_duplicate_key_is_found_with_the_line_of_the_first() -> None:
    document = parse("a: 1\nb: 2\na: 3\n", "f")
    assert [(p.line, p.column, p.path) for p in document.problems] == [(3, 1, "a")]
    assert "first in line 1" in document.problems[0].message


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "empty", 1),
        ("# only a comment\n", "empty", 1),
        ("a:\n\tb: 1\n", "tab", 2),
        ("a: 1\n---\nb: 2\n", "second document", 2),
        ("a: *nobody\n", "no anchor", 1),
        ("a: &x [*x]\n", "contains itself", 1),
        ("a: [1, 2\nb: 3\n", "expected ',' or ']'", 2),
        ("a: 'open\n", "", 2),
        ("a: b: c\n", "mapping values", 1),
        ("a: \x00\n", "U+0000", 1),
        ("x: 1\na: \x07\n", "U+0007", 2),
        ("[" * 3000, "levels deep", 1),
        ("a: {" * 100 + "}" * 100, "levels deep", 1),
    ],
)
def test_text_that_is_no_scenario_is_refused_where_it_goes_wrong(text: str, message: str, line: int) -> None:
    problem = fails(text)
    assert message in problem.message
    assert problem.line == line


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!mine", "!!set", "!!binary"])
def test_a_tag_constructs_nothing(tag: str) -> None:
    document = parse(f"a: {tag} x\n", "f")
    assert ["is not allowed" in problem.message for problem in document.problems] == [True]
    assert document.data == {"a": "x"}


def test_keys_that_are_not_text_are_named() -> None:
    document = parse("1: a\n[x]: b\ntrue: c\n", "f")
    assert [problem.line for problem in document.problems] == [1, 2, 3]


def test_the_billion_laughs_end_quickly() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    start = time.process_time()
    assert "once its aliases are written out" in fails("\n".join(rows)).message
    merges = ["m0: &m0 {k: 1}"] + [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 20)]
    assert parse("\n".join(merges), "f").data["m19"] == {"k": 1}
    assert time.process_time() - start < 10


def test_numbers_of_absurd_length_are_a_problem_and_not_a_crash() -> None:
    document = parse("a: " + "9" * 5000, "f")
    assert "digits" in document.problems[0].message


def test_a_file_above_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"a: [" + b"1," * 5_000_000 + b"]")
    with pytest.raises(ScenarioError, match=f"at most {MAX_BYTES:,}"):
        read_document(path)


def test_bytes_that_are_not_utf_8_are_located(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: x\ndescription: Größe\n".encode("latin-1"))
    with pytest.raises(ScenarioError) as caught:
        read_document(path)
    problem = caught.value.problems[0]
    assert (problem.line, problem.column) == (2, 16)
    assert "0xf6" in problem.message


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_document(path).data == {"name": "x"}


def test_missing_files_folders_and_unreadable_things_are_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.yaml", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(ScenarioError, match=message):
            read_document(path)
    pipe = tmp_path / "notes" / "x.yaml"
    pipe.parent.write_text("a file where a folder is meant")
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_document(pipe)
    assert os.listdir(tmp_path) == ["notes"]


@pytest.mark.parametrize(
    "value",
    [
        "1e-3",
        "1_000",
        "yes",
        "null",
        "0o17",
        "",
        "a: b",
        "# x",
        "&a",
        "é\n",
        "2020-01-01",
        "1.",
        ".5",
        "~",
        "<<",
    ],
)
def test_dumped_text_reads_back_as_the_same_text(value: str) -> None:
    data = {"a": value, "b": [value, {"c": value}]}
    assert parse(dump_yaml(data), "f").data == data


@pytest.mark.parametrize("value", [1e-10, 0.1, 1e300, 5e-324, -0.0, 2.0, 10**17, True, None, [], {}])
def test_dumped_values_read_back_with_their_type(value: object) -> None:
    back = parse(dump_yaml({"a": value}), "f").data["a"]
    assert back == value
    assert type(back) is type(value)


def test_a_caret_stands_under_its_column_also_behind_tabs() -> None:
    shown = str(Problem("f", 3, 4, "a", "is wrong", "\tx: bad"))
    assert shown == "f:3:4: a: is wrong\n    \tx: bad\n    \t  ^"
