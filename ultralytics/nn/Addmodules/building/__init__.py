# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How the C++ library is compiled and how wheels are made; and what pip asks first: does this build need zig?

`pyproject.toml` names this package as the build backend (PEP 517). It is setuptools' own, but for one answer: where no
compiler works, pip is asked to bring the package ziglang, a C++ compiler, into the build's environment. Installation
imports this package as `building`, from the folder above, so that nothing of Ultralytics is needed.
"""

from __future__ import annotations

__all__ = (
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
)

SETUPTOOLS = 77  # the oldest that reads our pyproject.toml, which asks for it, too


def __getattr__(name: str):
    """Return setuptools' hooks. Only when asked for: Ultralytics runs where there is no setuptools."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(setuptools_hooks(), name)


def setuptools_hooks():
    """Return setuptools' own hooks.

    Raises:
        SystemExit: If it is missing or too old. That happens where pip does not bring it: with `--no-build-isolation`.
    """
    try:
        from setuptools import __version__, build_meta
    except ImportError:
        found = "missing"
    else:
        if int(__version__.partition(".")[0]) >= SETUPTOOLS:
            return build_meta
        found = __version__
    raise SystemExit(
        f"\nVMamba-YOLO is built with setuptools {SETUPTOOLS} or newer, which is {found} here: run "
        f'`pip install "setuptools>={SETUPTOOLS}"`, or leave --no-build-isolation out.\n'
    )


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    """Return what building a wheel needs beside setuptools."""
    return [*setuptools_hooks().get_requires_for_build_wheel(config_settings), *_compiler(compiled=False)]


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    """Return what an editable installation needs beside setuptools."""
    own = setuptools_hooks()
    from .library import up_to_date  # which imports setuptools, too

    return [*own.get_requires_for_build_editable(config_settings), *_compiler(compiled=up_to_date())]


def _compiler(compiled: bool) -> list[str]:
    """Return zig if there is something to compile and no compiler that works."""
    from . import compilers, library

    try:
        wish = compilers.choice()
    except compilers.CompilerError as e:
        raise SystemExit(f"\n{e}\n") from None
    if wish == "zig":
        return [compilers.ZIG]
    if wish == "auto" and not compiled and compilers.here() and (why := compilers.system_problem()):
        # pip does not go on without it, and names neither the reason nor the way out
        library.aloud(
            f"No C++ compiler works here ({why}), so pip brings one for the installation: ziglang, 101 MB. If it "
            f"cannot, set the variable VMAMBA_COMPILER to none: the CPU then takes plain PyTorch, {library.SLOWER} "
            f"times slower."
        )
        return [compilers.ZIG]
    return []
