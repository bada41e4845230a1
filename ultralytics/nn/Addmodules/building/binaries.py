# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Reads compiled libraries of any platform: what they were built for, what they export, which C library they need.

Sources: the ELF gABI with its GNU symbol versions, Microsoft's PE format, Apple's mach-o/loader.h and nlist.h.
"""

from __future__ import annotations

import platform
import re
import struct
from typing import NamedTuple

__all__ = ("Binary", "read_binary")

ELF_MACHINES = {62: "x86_64", 183: "arm64"}
PE_MACHINES = {0x8664: "x86_64", 0xAA64: "arm64"}
MACHO_MACHINES = {0x01000007: "x86_64", 0x0100000C: "arm64"}
LIBRARY_COMMANDS = (0xC, 0x80000018)  # LC_LOAD_DYLIB, and the weak kind


class Binary(NamedTuple):
    """What a library says of itself.

    Attributes:
        platform (str): Name of a target, such as `linux-x86_64`.
        exports (tuple[str, ...]): Functions and data that others can use, sorted.
        needs (tuple[str, ...]): Libraries that it loads, sorted.
        versions (tuple[str, ...]): Symbol versions that it asks of them, such as `GLIBC_2.14`; oldest first.
    """

    platform: str
    exports: tuple[str, ...]
    needs: tuple[str, ...]
    versions: tuple[str, ...] = ()

    @property
    def glibc(self) -> tuple[int, ...]:
        """The newest version of glibc that is asked for; () if none is."""
        found = [v for v in self.versions if re.fullmatch(r"GLIBC_[\d.]+", v)]
        return max((tuple(map(int, v.partition("_")[2].split("."))) for v in found), default=())


def read_binary(data: bytes) -> Binary:
    """Read a library.

    Raises:
        ValueError: If it is no 64-bit library of a known format, or cut short.
    """
    try:
        if data[:5] == b"\x7fELF\2":
            return _elf(data)
        if data[:2] == b"MZ":
            return _pe(data)
        if data[:4] == b"\xcf\xfa\xed\xfe":
            return _macho(data)
        if data[:4] == b"\xca\xfe\xba\xbe":
            return _macho(_slice(data))
    except (struct.error, IndexError, KeyError) as e:
        raise ValueError(f"a damaged library, or one for another kind of processor ({e!r})") from None
    raise ValueError("no 64-bit library for Linux, Windows or macOS")


def _slice(data: bytes) -> bytes:
    """Return the library for this machine out of one for several, as a universal Python makes them on macOS."""
    (count,) = struct.unpack_from(">I", data, 4)
    found = {}
    for i in range(count):
        processor, _, offset, size, _ = struct.unpack_from(">5I", data, 8 + 20 * i)
        found[MACHO_MACHINES.get(processor)] = data[offset : offset + size]
    return found.get(platform.machine()) or found[next(iter(found), None)]


def _text(data: bytes, at: int) -> str:
    """Return the text that starts there and ends with a zero."""
    return data[at : data.index(b"\0", at)].decode()


def _elf(data: bytes) -> Binary:
    """Read a library of Linux: the dynamic symbols and the versions they need."""
    machine, table, size, count = struct.unpack_from("<H", data, 18) + struct.unpack_from("<Q10xHH", data, 40)
    sections = []
    for i in range(count):
        _, kind, _, _, offset, length, link, info, _, entry = struct.unpack_from("<IIQQQQIIQQ", data, table + i * size)
        sections.append((kind, offset, length, link, info, entry))
    exports, needs, versions = [], [], set()
    for kind, offset, length, link, info, _ in sections:
        strings = sections[link][1] if link < len(sections) else 0
        if kind == 11:  # SHT_DYNSYM
            for at in range(offset, offset + length, 24):
                name, bind, _, section = struct.unpack_from("<IBBH", data, at)
                if section and name and bind >> 4:  # defined here, and not local
                    exports.append(_text(data, strings + name))
        elif kind == 6:  # SHT_DYNAMIC
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag == 1:  # DT_NEEDED
                    needs.append(_text(data, strings + value))
        elif kind == 0x6FFFFFFE:  # SHT_GNU_verneed
            at = offset
            for _ in range(info):
                _, entries, _, first, following = struct.unpack_from("<HHIII", data, at)
                entry = at + first
                for _ in range(entries):
                    _, _, _, name, later = struct.unpack_from("<IHHII", data, entry)
                    versions.add(_text(data, strings + name))
                    entry += later
                at += following
    ordered = sorted(versions, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
    return Binary(f"linux-{ELF_MACHINES[machine]}", tuple(sorted(exports)), tuple(sorted(needs)), tuple(ordered))


def _pe(data: bytes) -> Binary:
    """Read a library of Windows: its tables of exports and imports."""
    (start,) = struct.unpack_from("<I", data, 0x3C)
    machine, count, optional = struct.unpack_from("<HH12xH", data, start + 4)
    header = start + 24
    sections = [struct.unpack_from("<IIII", data, header + optional + i * 40 + 8) for i in range(count)]

    def at(address: int) -> int:
        """Return where an address of the loaded library is in the file."""
        return next(raw + address - first for size, first, _, raw in sections if first <= address < first + size)

    exported, _, imported = struct.unpack_from("<III", data, header + 112)
    exports, needs = [], []
    if exported:
        names, table = struct.unpack_from("<I4xI", data, at(exported) + 24)
        exports = [_text(data, at(struct.unpack_from("<I", data, at(table) + 4 * i)[0])) for i in range(names)]
    entry = at(imported) if imported else None
    while entry is not None and (name := struct.unpack_from("<12xI", data, entry)[0]):
        needs.append(_text(data, at(name)))
        entry += 20
    return Binary(f"windows-{PE_MACHINES[machine]}", tuple(sorted(exports)), tuple(sorted(needs)))


def _macho(data: bytes) -> Binary:
    """Read a library of macOS: its tree of exports, which is what the loader looks into, and the libraries it loads."""
    _, machine, _, _, count = struct.unpack_from("<IIIII", data)
    at, exports, needs = 32, [], []
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        if command in (0x22, 0x80000022):  # LC_DYLD_INFO, LC_DYLD_INFO_ONLY
            exports += _tree(data, *struct.unpack_from("<II", data, at + 40))
        elif command == 0x80000033:  # LC_DYLD_EXPORTS_TRIE
            exports += _tree(data, *struct.unpack_from("<II", data, at + 8))
        elif command in LIBRARY_COMMANDS:
            needs.append(_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
        at += size
    names = sorted(name.removeprefix("_") for name in exports)
    return Binary(f"macos-{MACHO_MACHINES[machine]}", tuple(names), tuple(sorted(needs)))


def _tree(data: bytes, start: int, size: int) -> list[str]:
    """Return the names in a tree of exports: a node is the size of its own entry, the entry, and edges with texts."""
    found, todo = [], [(start, "")] if size else []
    while todo:
        at, name = todo.pop()
        entry, at = _number(data, at)
        if entry:
            found.append(name)
        at += entry
        edges, at = data[at], at + 1
        for _ in range(edges):
            text = _text(data, at)
            offset, at = _number(data, at + len(text.encode()) + 1)
            todo.append((start + offset, name + text))
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte (ULEB128) and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
