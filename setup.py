# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Installation: lays the pinned upstream release and the patches first, then packages the tree as it stands.

Build front ends run this file about three times for one installation; when nothing changed, set-up costs milliseconds.
"""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.modified import newer_group

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # build front ends leave the source folder out

from patches import PatchesError, tree  # noqa: E402
from patches.upstream import load_pin, split_requires  # noqa: E402

SCAN = Path("ultralytics/nn/Addmodules/selective_scan/backends")
ONNX = ["onnx>=1.16.1,<2", "onnxruntime>=1.18", "onnxslim>=0.1.82"]
REQUIRES = ["torch>=2.4.0", "einops>=0.6.0", "scikit-learn>=1.0"]  # torch: torch.library.custom_op
EXTRAS = {
    "cuda": ["mamba-ssm>=2.2.0", "causal-conv1d>=1.4.0"],
    "deploy": [*ONNX, "openvino>=2025.2"],
    # ruff in one series, because new ones bring new rules; setuptools lets the packaging tests build a wheel in place
    "test": [
        "pytest>=8.0",
        "pytest-timeout>=2.3",
        "hypothesis>=6.100",
        "lap>=0.5.12",
        "ruff>=0.17,<0.18",
        "setuptools>=77",
        *ONNX,
    ],
    "bench": ["mambapy>=1.2.0,<1.3"],  # a peer that benchmarks/scan_cpu.py times
    "dev": ["ultralytics[test]", "build>=1.0"],
}


class BuildPy(build_py):
    """Builds a wheel's files from nothing: setuptools would also pack what an earlier build left behind."""

    def run(self):
        """Copy the package."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "ultralytics", ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    """Compiles the CPU scan where there is a compiler, and says plainly when there is none."""

    def build_extension(self, ext):
        """Compile the extension, unless this is an editable installation again and no source has changed."""
        target = Path(self.get_ext_fullpath(ext.name))
        beside = SCAN / target.name
        if self.editable_mode and not newer_group([*ext.sources, *ext.depends, "setup.py"], beside):
            self.mkpath(str(target.parent))
            self.copy_file(str(beside), str(target))
            return
        msvc = self.compiler.compiler_type == "msvc"
        ext.extra_compile_args = (
            ["/O2", "/std:c++17"] if msvc else ["-O3", "-std=c++17", "-fno-math-errno", "-fvisibility=hidden", "-g0"]
        )
        try:
            super().build_extension(ext)
        except Exception as e:
            self.warn(
                f"The C++ selective scan was not compiled ({e}); installation goes on, and the CPU uses plain PyTorch "
                f"for it. For the faster one, install a C++17 compiler and install again."
            )
            raise  # setuptools goes on, because the extension is optional


class Sdist(sdist):
    """Leaves upstream's files out: whoever builds from the archive lays them as from a checkout."""

    def make_release_tree(self, base_dir, files):
        """Copy this fork's own files."""
        laid = tree.read_manifest()["files"]
        super().make_release_tree(base_dir, [f for f in files if Path(f).as_posix() not in laid])


def main():
    """Lay the tree and package it."""
    try:
        manifest, did = tree.setup()
    except PatchesError as e:
        raise SystemExit(f"\nVMamba-YOLO could not be set up.\n{e}\n") from None
    if did:
        print(did, flush=True)
    requires, extras = split_requires(manifest["requires"])
    files = sorted({*manifest["files"], *tree.own_files(compiled=False)})
    sources = sorted(path.as_posix() for path in (SCAN / "csrc").glob("*.cpp"))
    included = sorted(path.as_posix() for path in (SCAN / "csrc").iterdir()) if sources else []
    name = ".".join((*SCAN.parts, "_cpu"))
    extension = Extension(name, sources, depends=included, language="c++", optional=True)
    setup(
        version=load_pin().fork_version,
        install_requires=requires + REQUIRES,
        extras_require={**extras, **EXTRAS},
        packages=find_packages(include=["ultralytics", "ultralytics.*"]),
        # Named one by one, so that nothing else that lies in the tree gets into a wheel
        package_data={"ultralytics": [path.partition("/")[2] for path in files if not path.endswith(".py")]},
        include_package_data=False,
        ext_modules=[extension] if sources else [],
        cmdclass={"build_py": BuildPy, "build_ext": BuildExt, "sdist": Sdist},
    )


main()
