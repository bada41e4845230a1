# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""One sentence instead of a traceback for what a user can cause; a bug keeps its traceback."""

from __future__ import annotations

import errno
import linecache
import os
import re

__all__ = ("is_ours", "on_purpose", "one_line", "origin", "sentence")

LONGEST = 400


def sentence(error: BaseException) -> str | None:
    """Return what an error says in one line if some code raised it on purpose, or None if it is a bug.

    On purpose means that the statement it comes from is a `raise` or an `assert`. A look-up that fails, or a call with
    wrong arguments, has no such statement. What the system says of a file counts as well.

    Args:
        error (BaseException): An error that was caught.
    """
    chain = _chain(error)
    # What this fork says comes first. Ultralytics hides its better messages behind general ones; those of other
    # libraries stay behind its own.
    ours = [e for e in chain if "/nn/Addmodules/" in origin(e)[0]]
    theirs = [e for e in chain if "ultralytics" in origin(e)[0]]
    meant = [e for e in theirs if on_purpose(e)]
    error = ours[0] if ours else (meant or theirs or chain)[-1]
    if isinstance(chain[-1], MemoryError) or re.search(r"can't allocate memory|out of memory", str(chain[-1])):
        return (
            f"not enough memory: {' '.join(str(chain[-1]).split())[:LONGEST]}; make the sizes of the settings smaller"
        )
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.strerror}: '{error.filename}'"
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and not os.path.isfile(error.filename):
            text += "; choose a folder that you can write to, for a training by its full path: project=FOLDER"
    elif on_purpose(error):
        text = one_line(error)
    else:
        return None
    text = re.sub(
        r" \((RuntimeError|EOFError|UnpicklingError): .*?\)\. ", ". ", text
    )  # PyTorch's words on a broken file
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def one_line(error: BaseException) -> str:
    """Return the text of an error in a line, without a terminal's colours; its kind where it has no text."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() quotes a KeyError's
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(text)).split()) or type(error).__name__


def on_purpose(error: BaseException) -> bool:
    """Return whether the statement that an error comes from is a `raise` or an `assert`."""
    return bool(re.match(r"(raise|assert)\b", origin(error)[1]))


def is_ours(error: BaseException) -> bool:
    """Return whether code of this fork raised an error, or the one from which it comes."""
    return any("/nn/Addmodules/" in origin(e)[0] for e in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those from which it comes."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def origin(error: BaseException) -> tuple[str, str]:
    """Return the file and the text of the statement that an error comes from."""
    trace = error.__traceback__
    if trace is None:
        return "", ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    return file.replace("\\", "/"), linecache.getline(file, trace.tb_lineno).strip()
