"""YAML text to plain data that remembers where each key and value was written.

YAML 1.2 core scalars (``1e-3`` is a number, ``yes`` is text), with underscores in numbers. Composed from
parser events instead of by PyYAML's constructors: duplicate keys are seen, aliases are expanded within a
budget, depth is bounded, and no tag constructs anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from marl_tr.scenario.problems import Path, Place, Problem, ScenarioError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NODES", "Document", "dump_yaml", "parse", "read_document"]

MAX_BYTES = 1_000_000
"""A scenario is a page or two; a larger file is somebody else's."""

MAX_NODES = 50_000
"""Values after aliases are expanded: stops the 'billion laughs'."""

MAX_DEPTH = 40
"""Nesting; nothing in a scenario comes near, and Python's stack stays safe."""

_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^([-+]?[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)$")
# The exponent needs no dot and no sign, unlike in YAML 1.1.
_FLOAT = re.compile(
    r"^([-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_CORE = "tag:yaml.org,2002:"


@dataclass
class Document:
    """Plain data with positions.

    Attributes:
        file: Name for messages.
        data: Nested dicts, lists and scalars.
        keys: Where each key (or list entry) is written.
        values: Where each value is written; for an alias, where its anchor is.
        problems: What was wrong but did not end the reading: duplicate keys, tags.
        single_agent: `agents` was one mapping; paths are shown without the index.
    """

    file: str
    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    single_agent: bool = False

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where `path` is written: its value (or, with `key`, its key), or the nearest thing around it.

        What a preset filled in lies where the preset is named.
        """
        for length in range(len(path), 0, -1):
            first, second = (self.keys, self.values) if key or length < len(path) else (self.values, self.keys)
            found = first.get(path[:length]) or second.get(path[:length])
            if found is not None:
                return found
        filled = bool(path) and isinstance(self.data, dict) and path[0] in self.data
        preset = self.values.get(("preset",)) if filled else None
        return preset or self.values.get(()) or Place(self.file)

    def problem(self, path: Path, message: str, *, key: bool = False) -> Problem:
        """`message` about the setting `path`, with its position."""
        shown = path[:1] + path[2:] if self.single_agent and path[:2] == ("agents", 0) else path
        return Problem.at(self.place(path, key=key), ".".join(map(str, shown)), message)


def read_document(path: FilePath, shown: str | None = None) -> Document:
    """Read the file at `path`; `shown` is its name in messages.

    Raises:
        ScenarioError: It cannot be read, is too large, is not UTF-8, or is not one YAML document.
    """
    name = shown or str(path)

    def fail(message: str) -> ScenarioError:
        return ScenarioError([Problem(name, None, None, "", message)])

    if path.is_dir():
        raise fail("is a folder, not a scenario file")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise fail(f"has {size:,} bytes; a scenario has at most {MAX_BYTES:,}")
        # One byte more than allowed: a pipe or a growing file has no honest size.
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise fail("no such file") from error
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise fail(f"has more than {MAX_BYTES:,} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8")
        line = _LINE_BREAK.split(before)
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ScenarioError([Problem(name, len(line), len(line[-1]) + 1, "", message)]) from error
    return parse(text, name)


def parse(text: str, file: str) -> Document:
    """One YAML document.

    Args:
        text: The YAML.
        file: Name for messages.

    Raises:
        ScenarioError: A syntax error, an unknown alias, or a document beyond `MAX_DEPTH` or `MAX_NODES`; a
        second
            document; no document.
    """
    composer = _Composer(text, file)
    try:
        root = composer.document()
    except yaml.reader.ReaderError as error:
        # The reader gives an offset; a mark with a line is made of it.
        before = _LINE_BREAK.split(text[: error.position])
        mark = yaml.Mark(file, error.position, len(before) - 1, len(before[-1]), None, 0)
        raise ScenarioError([composer.at(mark, f"character U+{_code(error.character):04X} is not allowed")]) from error
    except yaml.MarkedYAMLError as error:
        raise ScenarioError([composer.syntax(error)]) from error
    document = Document(file, problems=composer.problems)
    _Expander(document).expand(root, (), 0)
    return document


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `parse` reads back unchanged; keys keep their order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 would read as a number ('1e-3'), beside what YAML 1.1 would."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(_CORE + "int", _INT, list("-+0123456789"))
_Dumper.add_implicit_resolver(_CORE + "float", _FLOAT, list("-+.0123456789"))


@dataclass
class _Node:
    """A composed value: a scalar, a list of nodes, or a mapping with its merges already in it."""

    value: Any
    place: Place


@dataclass
class _Field:
    place: Place
    node: _Node


class _Composer:
    """Parser events to nodes. Anchored nodes are shared, never copied, so composing is linear in the text."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines = _LINE_BREAK.split(text)
        self.problems: list[Problem] = []
        self.anchors: dict[str, _Node | None] = {}
        self.text = text

    def document(self) -> _Node:
        events: Iterator[Any] = iter(yaml.parse(self.text, Loader=yaml.SafeLoader))
        next(events)  # the stream's start
        first = next(events)
        if isinstance(first, yaml.StreamEndEvent):
            raise ScenarioError([Problem(self.file, 1, 1, "", "is empty")])
        root = self.node(next(events), events, 0)
        next(events)  # the document's end
        after = next(events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise ScenarioError([self.at(after.start_mark, "a second document begins; a scenario is one document")])
        return root

    def node(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise ScenarioError([self.at(event.start_mark, f"is nested more than {MAX_DEPTH} levels deep")])
        place = self.place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(self.scalar(event), place)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.check_tag(event, "seq")
            items: list[_Node] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                items.append(self.node(item, events, depth + 1))
            node = _Node(items, place)
        else:
            self.check_tag(event, "map")
            node = _Node(self.mapping(events, depth), place)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def mapping(self, events: Iterator[Any], depth: int) -> dict[str, _Field]:
        own: dict[str, _Field] = {}
        merged: dict[str, _Field] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            place = self.place(event.start_mark)
            is_merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]
            key = "<<" if is_merge else self.node(event, events, depth + 1).value
            node = self.node(next(events), events, depth + 1)
            if is_merge:
                for name, merged_field in self.merge(node):
                    merged.setdefault(name, merged_field)
            elif not isinstance(key, str):
                self.problems.append(Problem.at(place, "", "a key must be text; put it in quotes if it is meant"))
            elif key in own:
                line = own[key].place.line
                self.problems.append(Problem.at(place, key, f"is given twice; first in line {line}"))
            else:
                own[key] = _Field(place, node)
        return own | {name: item for name, item in merged.items() if name not in own}

    def merge(self, node: _Node) -> Iterator[tuple[str, _Field]]:
        for source in node.value if isinstance(node.value, list) else [node]:
            if isinstance(source.value, dict):
                yield from source.value.items()
            else:
                message = "'<<' merges a mapping or a list of mappings (usually aliases: <<: *name)"
                self.problems.append(Problem.at(source.place, "<<", message))

    def alias(self, event: Any) -> _Node:
        if event.anchor not in self.anchors:
            known = ", ".join(f"&{name}" for name in self.anchors)
            hint = f"anchors so far: {known}" if known else "no anchor comes before it"
            raise ScenarioError([self.at(event.start_mark, f"alias *{event.anchor} has no anchor; {hint}")])
        node = self.anchors[event.anchor]
        if node is None:
            raise ScenarioError([self.at(event.start_mark, f"alias *{event.anchor} contains itself")])
        return node

    def scalar(self, event: Any) -> Any:
        text: str = event.value
        tag = self.check_tag(event, "str", "int", "float", "bool", "null")
        if tag is None and not event.implicit[0]:
            tag = "str"  # quoted
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
            self.problems.append(self.at(event.start_mark, "holds half a surrogate pair, which is no character"))
            return text.encode("utf-8", "replace").decode()
        try:
            return _scalar(text, tag)
        except ValueError as error:
            self.problems.append(self.at(event.start_mark, str(error)))
            return text

    def check_tag(self, event: Any, *allowed: str) -> str | None:
        if event.tag is None or event.tag == "!":
            return None if event.tag is None else allowed[0]
        name = str(event.tag).removeprefix(_CORE)
        if name in allowed and event.tag.startswith(_CORE):
            return name
        shown = "!!" + name if event.tag.startswith(_CORE) else event.tag
        self.problems.append(self.at(event.start_mark, f"tag {shown} is not allowed; a scenario holds plain values"))
        return None

    def syntax(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            return Problem(self.file, 1, 1, "", str(error))
        source = self.source(mark.line)
        if "\t" in source[: mark.column + 1] and not source[: mark.column + 1].strip("\t -"):
            return self.at(mark, "a tab in the indentation; YAML wants spaces")
        context = f" ({error.context})" if error.context else ""
        return self.at(mark, f"{error.problem or 'is not YAML'}{context}")

    def at(self, mark: Any, message: str) -> Problem:
        return Problem.at(self.place(mark), "", message)

    def place(self, mark: Any) -> Place:
        return Place(self.file, mark.line + 1, mark.column + 1, self.source(mark.line))

    def source(self, line: int) -> str:
        # Shortened: a file of one enormous line must not flood the terminal.
        return self.lines[line][:500] if line < len(self.lines) else ""


class _Expander:
    """Nodes to plain data, aliases copied, within `MAX_NODES` and `MAX_DEPTH`."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.left = MAX_NODES

    def expand(self, node: _Node, path: Path, depth: int) -> None:
        self.document.data = self.value(node, path, depth)

    def value(self, node: _Node, path: Path, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            limit = f"nested more than {MAX_DEPTH} levels deep" if self.left >= 0 else f"more than {MAX_NODES:,} values"
            raise ScenarioError([Problem.at(node.place, "", f"is {limit} once its aliases are written out")])
        self.document.values[path] = node.place
        if isinstance(node.value, list):
            for index, item in enumerate(node.value):
                self.document.keys[(*path, index)] = item.place
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node.value, dict):
            for name, item in node.value.items():
                self.document.keys[(*path, name)] = item.place
            return {name: self.value(item.node, (*path, name), depth + 1) for name, item in node.value.items()}
        return node.value


def _scalar(text: str, tag: str | None) -> Any:
    """A scalar under the core schema; `tag` forces a type."""
    if tag == "str":
        return text
    if tag in (None, "null") and _NULL.match(text):
        return None
    if tag in (None, "bool") and _BOOL.match(text):
        return text.lower() == "true"
    if tag in (None, "int") and _INT.match(text):
        if len(text) > 1000:
            raise ValueError("a number of more than 1000 digits")
        digits = text.replace("_", "")
        return int(digits, 0) if digits[:2] in ("0x", "0o") else int(digits)
    if tag in (None, "float") and (_FLOAT.match(text) or (tag and _INT.match(text))):
        value = float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        # 1e6 steps are a whole number of steps; the models still refuse 1.5 where a whole number is due.
        return int(value) if tag is None and "." not in text and abs(value) < 2**53 and value.is_integer() else value
    if tag is None:
        return text
    raise ValueError(f"{text!r} is not a {tag}")


def _code(character: Any) -> int:
    return character if isinstance(character, int) else ord(character)
