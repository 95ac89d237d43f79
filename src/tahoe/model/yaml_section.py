"""Read a YAML file value by value, each by kind, with the file and the key in every error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from tahoe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Larger than any network of this family by a wide margin: a broken file must not ask for all memory.
LARGEST = 1 << 24


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values, with the loader that makes plain values only."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        message = f"{path.name} in {path.parent} is not readable YAML: {str(error).splitlines()[0]}"
        raise ModelError(message) from error
    if not isinstance(content, dict):
        message = f"{path.name} in {path.parent} must hold keys and values, not {type(content).__name__}"
        raise ModelError(message)
    return content


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

    def integer(self, key: str, default: int | None = None) -> int:
        """Read a whole number; without a default it must be there, and at least 1."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            self._fail(key, value, f"a whole number between 0 and {LARGEST:,}")
        if value == 0 and default is None:
            self._fail(key, value, "at least 1")
        return value

    def number(self, key: str, default: float) -> float:
        """Read a finite number."""
        value = self._get(key, default)
        try:
            # PyYAML reads 1e-05 (no point) as text
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            self._fail(key, value, "a number")
        if isinstance(value, bool) or not abs(number) < float("inf"):
            self._fail(key, value, "a finite number")
        return number

    def average(self, key: str, default: float) -> float:
        """Read a number, or the mean of several among which training chose."""
        value = self.content.get(key)
        if not isinstance(value, list) or not value:
            return self.number(key, default)
        return sum(Section({key: each}, self.place).number(key, default) for each in value) / len(value)

    def flag(self, key: str, default: bool) -> bool:
        """Read true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._fail(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Read any value as text."""
        return str(self._get(key, default))

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
            message = f"{self.place}: {key} is {value!r}; this package computes only {', '.join(map(repr, allowed))}"
            raise ModelError(message)

    def _get(self, key: str, default: Any) -> Any:
        value = self.content.get(key)
        if value is None and default is None:
            message = f"{self.place}: {key} is missing"
            raise ModelError(message)
        return default if value is None else value

    def _fail(self, key: str, value: Any, wanted: str) -> Any:
        message = f"{self.place}: {key} is {value!r}; it must be {wanted}"
        raise ModelError(message)
