# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Installation: lays the pinned upstream release and the patches first, then packages the tree as it stands.

Build front ends run this file about three times for one installation; when nothing changed, set-up costs milliseconds.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# Build front ends leave the source folder out; `building` is imported without what lies around it, which needs PyTorch
sys.path[:0] = [str(ROOT), str(ROOT / "ultralytics/nn/Addmodules")]

from building import setuptools_hooks  # noqa: E402

setuptools_hooks()  # says so where setuptools is too old for the imports below

from building import library, wheels  # noqa: E402
from building.compilers import CompilerError, choice  # noqa: E402
from building.machines import problem  # noqa: E402
from setuptools import find_packages, setup  # noqa: E402
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402
from setuptools.command.build_py import build_py  # noqa: E402
from setuptools.command.sdist import sdist  # noqa: E402

from patches import PatchesError, tree  # noqa: E402
from patches.upstream import load_pin, split_requires  # noqa: E402

ONNX = ["onnx>=1.16.1,<2", "onnxruntime>=1.18", "onnxslim>=0.1.82"]
REQUIRES = [
    "torch>=2.4.0",  # torch.library.custom_op
    "einops>=0.6.0",
    "scikit-learn>=1.0",
    # PyTorch brings Triton on Linux alone
    'triton-windows>=3.2; sys_platform == "win32" and platform_machine == "AMD64"',
]
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
        "supervision>=0.31",  # the converter of docs/data.md
        "onnxscript>=0.5",  # torch.onnx.export needs it where nobody gives dynamo=False
        *ONNX,
    ],
    "bench": ["mambapy>=1.2.0,<1.3"],  # a peer that benchmarks/scan_cpu.py times
    "dev": ["ultralytics[test]", "build>=1.0"],
    "release": [f"{name}=={number}" for name, number in wheels.RELEASE.items()],
}


class BuildPy(build_py):
    """Builds a wheel's files from nothing, and from the fork's files alone.

    setuptools would also pack what an earlier build left behind, and every module that lies in the tree.

    Attributes:
        files (frozenset[str]): The fork's files.
    """

    files = frozenset()

    def run(self):
        """Copy the package."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "ultralytics", ignore_errors=True)
        elif choice() == "none":
            library.leave_out()
        super().run()

    def find_package_modules(self, package, package_dir):
        """Return the modules of a package."""
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if Path(module[2]).as_posix() in self.files]


class BdistWheel(bdist_wheel):
    """Names the wheel for its platform alone: the library needs no Python.h and serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the wheel."""
        python, abi, system = super().get_tag()
        return (python, abi, system) if self.root_is_pure else ("py3", "none", system)


class Sdist(sdist):
    """Leaves upstream's files out: whoever builds from the archive lays them as from a checkout."""

    def make_release_tree(self, base_dir, files):
        """Copy this fork's own files."""
        laid = tree.read_manifest()["files"]
        super().make_release_tree(base_dir, [f for f in files if Path(f).as_posix() not in laid])


def main():
    """Lay the tree and package it."""
    if said := problem():
        raise SystemExit(f"\nVMamba-YOLO cannot be installed here.\n{said}\n")
    try:
        extensions = library.extensions()
        manifest, did = tree.setup()
    except (PatchesError, CompilerError) as e:
        raise SystemExit(f"\nVMamba-YOLO could not be set up.\n{e}\n") from None
    if did:
        print(did, flush=True)
    requires, extras = split_requires(manifest["requires"])
    files = sorted({*manifest["files"], *tree.own_files(compiled=False)})
    BuildPy.files = frozenset(files)
    setup(
        version=load_pin().fork_version,
        install_requires=requires + REQUIRES,
        extras_require={**extras, **EXTRAS},
        packages=find_packages(include=["ultralytics", "ultralytics.*"]),
        # Named one by one, as BuildPy does for modules, so that nothing else that lies in the tree gets into a wheel
        package_data={"ultralytics": [path.partition("/")[2] for path in files if not path.endswith(".py")]},
        include_package_data=False,
        ext_modules=extensions,
        cmdclass={"build_py": BuildPy, "build_ext": library.BuildExt, "bdist_wheel": BdistWheel, "sdist": Sdist},
    )


main()
