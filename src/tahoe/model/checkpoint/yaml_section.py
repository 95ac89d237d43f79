"""Read a YAML file value by value, each by kind, with the file and the key in every error."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

import yaml

from tahoe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from pathlib import Path

# Larger than any file, or network, of this family by a wide margin: a broken file must not ask for all memory or time.
LARGEST_FILE = 1 << 18
LARGEST = 1 << 24
# Errors of int(), float() and the like, which PyYAML lets through.
LET_THROUGH = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Loader(yaml.SafeLoader):
    """Plain values only, each key once, and no merging of mappings, by which a small file can become endless."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; PyYAML would merge others into it, and keep the last of two equal keys."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag == "tag:yaml.org,2002:merge" or key in seen:
                problem = "merges mappings" if key not in seen else f"has the key {_shown(key)} twice"
                raise yaml.constructor.ConstructorError(None, None, f"a mapping {problem}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values, with a loader that makes plain values only."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        message = f"{path.name} in {path.parent} has {size:,} bytes; a configuration has at most {LARGEST_FILE:,}"
        raise ModelError(message)
    try:
        content = Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, *LET_THROUGH) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        message = f"{path.name} in {path.parent} is not readable YAML: {reason}"
        raise ModelError(message) from error
    if not isinstance(content, dict):
        message = f"{path.name} in {path.parent} must hold keys and values, not {type(content).__name__}"
        raise ModelError(message)
    return content


def _shown(value: object) -> str:
    """A value for an error: a few words of it, since aliases can make a short file a very long text."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxstring, short.maxother = 2, 3, 3, 60, 60
    return short.repr(value)


class Section:
    """One mapping of a YAML file: reads values by kind, with the file and the key in every error."""

    def __init__(self, content: Mapping[str, Any], place: str) -> None:
        self.content = content
        self.place = place

    def __bool__(self) -> bool:
        return bool(self.content)

    def section(self, key: str) -> Section:
        """Read a mapping inside this one; empty where there is none."""
        content = self.content.get(key)
        if not isinstance(content, dict | None):
            self._fail(key, content, "keys and values")
        return Section(content or {}, f"{self.place}: {key}")

    def integer(self, key: str, default: int | None = None, *, most: int = LARGEST) -> int:
        """Read a whole number; without a default it must be there, and at least 1."""
        value = self._get(key, default)
        least = 1 if default is None else 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._fail(key, value, f"a whole number between {least} and {most:,}")
        return value

    def number(self, key: str, default: float, *, least: float, most: float) -> float:
        """Read a number within limits."""
        value = self._get(key, default)
        try:
            # PyYAML reads 1e-05 (no point) as text
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            self._fail(key, value, "a number")
        if isinstance(value, bool) or not least <= number <= most:
            self._fail(key, value, f"a number between {least:g} and {most:g}")
        return number

    def average(self, key: str, default: float, *, least: float, most: float) -> float:
        """Read a number, or the mean of several among which training chose."""
        value = self.content.get(key)
        if not isinstance(value, list) or not value:
            return self.number(key, default, least=least, most=most)
        numbers = [Section({key: each}, self.place).number(key, default, least=least, most=most) for each in value]
        return sum(numbers) / len(numbers)

    def flag(self, key: str, default: bool) -> bool:
        """Read true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._fail(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Read a word or a number as text."""
        value = self._get(key, default)
        if not isinstance(value, str | int | float):
            self._fail(key, value, "a word")
        return str(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """Read one of some words."""
        value = self._get(key, default)
        if value not in choices:
            self._fail(key, value, f"one of {', '.join(choices)}")
        return value

    def refuse(self, key: str, allowed: tuple[Any, ...]) -> None:
        """Refuse any value but those that are implemented; a missing key passes."""
        value = self.content.get(key)
        if value is not None and (isinstance(value, str) and value.lower() or value) not in allowed:
            message = (
                f"{self.place}: {key} is {_shown(value)}; this package computes only {', '.join(map(repr, allowed))}"
            )
            raise ModelError(message)

    def _get(self, key: str, default: Any) -> Any:
        value = self.content.get(key)
        if value is None and default is None:
            message = f"{self.place}: {key} is missing"
            raise ModelError(message)
        return default if value is None else value

    def _fail(self, key: str, value: Any, wanted: str) -> Any:
        message = f"{self.place}: {key} is {_shown(value)}; it must be {wanted}"
        raise ModelError(message)
