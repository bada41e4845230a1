# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Command lines in the manner of `yolo`: a verb, then key=value. A verb says what it takes in one table."""

from __future__ import annotations

import ast
import difflib
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

__all__ = (
    "Option",
    "UsageError",
    "Verb",
    "at_most",
    "choice",
    "count",
    "file_name",
    "flag",
    "near",
    "number",
    "pairs",
    "parse",
    "quoted",
    "several",
)

WIDTH = 100


class UsageError(Exception):
    """A command line that cannot be understood; the message is the one sentence to print."""


@dataclass(frozen=True)
class Option:
    """One key of a verb.

    Attributes:
        name (str): The key.
        read (Callable[[str], object]): Turns the text after `=` into a value; its ValueError says what is expected.
        default (object): Value where the key is not given; `...` for a key that must be given.
        help (str): What it does.
        alone (object): Value of the key without `=`; None where it needs one.
    """

    name: str
    read: Callable[[str], object]
    default: object
    help: str
    alone: object = None


@dataclass(frozen=True)
class Verb:
    """What a command does.

    Attributes:
        name (str): Its word on the command line.
        summary (str): What it does, in a line.
        run (str): The function to call, as "module:function" of this package. It gets the values by key and returns the
            exit status. Its module is imported when the verb is called.
        options (tuple[Option, ...]): Its keys.
        kinds (tuple[Verb, ...]): Verbs of which one must follow, instead of `run` and `options`.
        more (str): What other keys are, for its help. If it is given, the verb gets their texts as `others` and checks
            them itself.
    """

    name: str
    summary: str
    run: str = ""
    options: tuple[Option, ...] = ()
    kinds: tuple[Verb, ...] = ()
    more: str = ""


# Readers of values ----------------------------------------------------------------------------------------------------


def flag(text: str) -> bool:
    """Read True or False."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise ValueError("True or False")
    return values[text.lower()]


def count(text: str) -> int:
    """Read an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a positive integer")
    return int(text)


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number, as in 1 or 0.5") from None


def file_name(text: str) -> str:
    """Read the name of a file."""
    if not text.strip():
        raise ValueError("the name of a file")
    return text


def at_most(most: int) -> Callable[[str], int]:
    """Return a reader of integers from 1 to a number, beyond which a command would not end."""

    def read(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise ValueError(f"an integer from 1 to {most}")
        return int(text)

    return read


ONE = re.compile(r"""'([^']*)'|"([^"]*)\"""")
QUOTED = re.compile(rf"\s*(?:{ONE.pattern})\s*(?:,\s*(?:{ONE.pattern})\s*)*,?\s*")


def several(text: str) -> list[str]:
    """Read names with commas between them, or a Python list of them for names that hold commas."""
    if text[:1] in "[(" and text[-1:] in "])":
        if QUOTED.fullmatch(text[1:-1]):  # as they stand: paths of Windows have backslashes
            return [name or other for name, other in ONE.findall(text[1:-1])]
        try:
            return [str(item) for item in ast.literal_eval(text)]
        except (ValueError, SyntaxError, TypeError):
            text = text[1:-1]
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError("names with commas between them")
    return names


def pairs(text: str) -> dict[str, object]:
    """Read values by name: expand:0.25,gate:True, or a Python dict for values that hold commas.

    Examples:
        >>> pairs("expand:0.25,d_conv:5")
        {'expand': 0.25, 'd_conv': 5}
    """
    found: object = None
    try:
        if text.startswith("{"):
            found = ast.literal_eval(text)
        else:
            split = [pair.partition(":") for pair in text.split(",")]
            if all(name.strip() and value.strip() for name, _, value in split):
                found = {name.strip(): _value(value.strip()) for name, _, value in split}
    except (ValueError, SyntaxError, TypeError):
        pass
    if not isinstance(found, dict):
        raise ValueError("name:value, with commas between them")
    return found


def _value(text: str) -> object:
    """Return what a text means in Python, or the text where it means nothing."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def choice(*names: str) -> Callable[[str], str]:
    """Return a reader of one of some names."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return text

    return read


# Command lines --------------------------------------------------------------------------------------------------------


def near(word: str, known: Iterable[str]) -> str:
    """Return a question about the known word that is nearest, or nothing where none is near.

    Examples:
        >>> near("chekcs", ["checks", "visualize"])
        "; did you mean 'checks'?"
    """
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def parse(verb: Verb, where: str, args: Sequence[str]) -> SimpleNamespace:
    """Return a verb's values by key.

    Leading dashes are ignored, as `yolo` does, and `key = value` counts as `key=value`.

    Args:
        verb (Verb): A verb without kinds.
        where (str): The command so far, for messages.
        args (Sequence[str]): What follows it.

    Raises:
        UsageError: If a key is unknown, given twice or lacks its value, or a value cannot be read.
    """
    options = {option.name: option for option in verb.options}
    values: dict[str, object] = {}
    others: dict[str, str] = {}
    for arg in _joined(args):
        key, equals, text = arg.lstrip("-").partition("=")
        key = key.replace("-", "_")
        option = options.get(key)
        if option is None and verb.more:
            if key in others:
                raise UsageError(f"{where}: '{key}' is given twice")
            others[key] = text if equals else "True"
            continue
        if option is None:
            raise UsageError(
                f"{where}: there is no setting '{key}'{near(key, options) or f'; it takes {list(options)}'}"
            )
        if key in values:
            raise UsageError(f"{where}: '{key}' is given twice")
        if not equals:
            if option.read is flag:
                values[key] = True
                continue
            if option.alone is None:
                raise UsageError(f"{where}: '{key}' has no value; write {key}=VALUE ({option.help})")
            values[key] = option.alone
            continue
        try:
            values[key] = option.read(text)
        except ValueError as e:
            raise UsageError(f"{where}: {key} must be {e}, got '{text}'") from None
    missing = [o.name for o in verb.options if o.default is ... and o.name not in values]
    if missing:
        raise UsageError(f"{where}: {' and '.join(f'{name}=' for name in missing)} must be given; see `{where} help`")
    found = SimpleNamespace(**{o.name: values.get(o.name, o.default) for o in verb.options})
    if verb.more:
        found.others = others
    return found


def _joined(args: Sequence[str]) -> list[str]:
    """Return arguments with `key = value`, `key =value` and `key= value` joined."""
    joined: list[str] = []
    for arg in args:
        if joined and ((joined[-1].endswith("=") and "=" not in arg) or arg.startswith("=")):
            joined[-1] += arg
        else:
            joined.append(arg)
    return joined


def usage(verb: Verb, where: str) -> str:
    """Return the help of a verb."""
    lines = [f"{where}: {verb.summary}", ""]
    if verb.kinds:
        lines += [f"    {f'{where} {kind.name}':<28} {kind.summary}" for kind in verb.kinds]
        return "\n".join([*lines, "", f"`{where} {verb.kinds[0].name} help` lists its settings."])
    width = max((len(o.name) for o in verb.options), default=0) + 3
    for o in verb.options:
        default = "" if o.default is None else " (must be given)" if o.default is ... else f" (default: {_shown(o)})"
        text = textwrap.wrap(o.help + default, WIDTH - 4 - width)
        lines.append(f"    {o.name + '=':<{width}}{text[0]}")
        lines += [" " * (4 + width) + line for line in text[1:]]
    lines += ["", *textwrap.wrap(verb.more, WIDTH)] if verb.more else []
    return "\n".join(lines)


def _shown(option: Option) -> str:
    """Return a default as it would be written."""
    return ",".join(map(str, option.default)) if isinstance(option.default, (list, tuple)) else str(option.default)


def quoted(path: str | Path) -> str:
    """Quote a path for a command line if it needs that: in double quotes on Windows, else as a POSIX shell reads it."""
    if os.name == "nt":
        return str(path) if re.fullmatch(r"[\w./\\:+@%-]+", str(path)) else f'"{path}"'
    return str(path) if re.fullmatch(r"[\w./:+@%-]+", str(path)) else shlex.quote(str(path))
