# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What this machine has: system, PyTorch, driver, compiler, scan backends. One row each, with what to do."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from ..hooks import threads as cores
from ..hooks.threads import cores_here
from ..selective_scan import Scan, registry
from .report_rows import ABSENT, OK, PROBLEM, Row

__all__ = ("chosen", "devices", "environment", "threads")

PYTORCH = "https://pytorch.org/get-started/locally"
TIMEOUT = 10.0  # seconds for another program's answer; nvidia-smi wakes a sleeping GPU first
SLOWER = "10 to 20"  # chunked over cpp; where both are, the report measures it
# Where nvidia-smi lies when the PATH has lost it: WSL, and Windows drivers before 2018
DRIVER_FOLDERS = ("/usr/lib/wsl/lib", "C:/Windows/System32", "C:/Program Files/NVIDIA Corporation/NVSMI")
PACKAGE_MANAGERS = {  # command that gets a C++ compiler, by the program that it begins with
    "apt-get": "sudo apt-get install g++",
    "dnf": "sudo dnf install gcc-c++",
    "yum": "sudo yum install gcc-c++",
    "zypper": "sudo zypper install gcc-c++",
    "pacman": "sudo pacman -S gcc",
    "apk": "sudo apk add g++",
}
BUILD_TOOLS = (
    'winget install Microsoft.VisualStudio.2022.BuildTools --override "--wait --passive '
    '--add Microsoft.VisualStudio.Workload.VCTools --includeRecommended"'
)


@dataclass(frozen=True)
class Answer:
    """What another program said: whether it is there, whether it succeeded, and its output or why there is none."""

    found: bool
    ok: bool
    text: str


@dataclass(frozen=True)
class Torch:
    """What PyTorch says of itself and of the GPUs it can use."""

    version: str
    cuda: str | None  # CUDA release it was built for
    hip: str | None
    available: bool  # torch.cuda.is_available()
    devices: tuple[tuple[str, float, int, int], ...]  # name, GiB, compute capability
    architectures: tuple[str, ...]  # sm_90, compute_120: what its CUDA code was compiled for
    warning: str  # why no GPU can be used, in PyTorch's words


def ask(program: str, *args: str, folders: Sequence[str] = (), timeout: float | None = None) -> Answer:
    """Run another program and return what it says; never raises, whatever lies under that name.

    Args:
        program (str): Name to look up on the PATH.
        *args (str): Its arguments.
        folders (Sequence[str]): Folders to look in after the PATH.
        timeout (float, optional): Seconds it may take, `TIMEOUT` by default.

    Returns:
        (Answer): Output and errors together, in that order.

    Examples:
        >>> ask("no-such-program").text
        'no-such-program not found'
    """
    timeout = TIMEOUT if timeout is None else timeout
    path = shutil.which(program) or next(filter(None, (shutil.which(program, path=f) for f in folders)), None)
    if path is None:
        return Answer(False, False, f"{program} not found")
    try:
        run = subprocess.run([path, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Answer(True, False, f"{program} gave no answer in {timeout:g} seconds")
    except OSError as e:
        return Answer(True, False, f"{program} does not start: {e.strerror or e}")
    text = "\n".join(x.decode("utf-8", "replace").strip() for x in (run.stdout, run.stderr)).strip()
    return Answer(True, run.returncode == 0, text or f"{program} ended with status {run.returncode} and said nothing")


def torch_facts() -> Torch:
    """Return what PyTorch says of itself; a driver that it cannot use makes a warning here, not an exception."""
    devices, architectures = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        try:
            for i in range(torch.cuda.device_count() if available else 0):
                p = torch.cuda.get_device_properties(i)
                devices.append((p.name, p.total_memory / 2**30, p.major, p.minor))
            architectures = torch.cuda.get_arch_list() if available else []
        except RuntimeError as e:  # a GPU that is listed and then cannot be opened
            available = False
            warnings.warn(str(e))
    said = " ".join(str(caught[0].message).split()) if caught and not available else ""
    return Torch(
        torch.__version__, torch.version.cuda, torch.version.hip, available, tuple(devices), tuple(architectures), said
    )


def devices() -> list[str]:
    """Return the devices whose backends are tested and timed: the CPU, and the first GPU."""
    found = ["cpu"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rows say it
        if torch.cuda.is_available():
            found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def install_command() -> str:
    """Return the command that installs this fork again: editable from a checkout, else over the copy that there is."""
    checkout = (Path(__file__).resolve().parents[4] / "setup.py").is_file()
    return "pip install -e ." if checkout else "pip install --force-reinstall --no-deps ."


def _several(names: Sequence[str]) -> str:
    """Return names with counts instead of repetitions.

    Examples:
        >>> _several(["A100", "A100", "T4"])
        '2 x A100, T4'
    """
    counts = {name: names.count(name) for name in names}
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())


def system_row() -> Row:
    """Return the operating system, Python and the number of cores."""
    name = f"{platform.system()} {platform.release()}"
    if platform.system() == "Darwin":
        name = f"macOS {platform.mac_ver()[0]}"
    elif platform.system() == "Linux":
        try:
            name = platform.freedesktop_os_release()["PRETTY_NAME"]
        except (OSError, KeyError):  # a distribution without that file: the kernel's release has to do
            pass
        name += " in WSL" if "microsoft" in platform.release().lower() else ""
    return Row(
        "system", OK, f"{name}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


def installation_row(versions: Sequence[str] | None = None) -> Row:
    """Return whether pip knows this fork, or has put stock Ultralytics, of the same name, in its place.

    Args:
        versions (Sequence[str], optional): Versions of the distributions called ultralytics; by default those here.
    """
    if versions is None:
        versions = [str(d.version) for d in metadata.distributions(name="ultralytics")]
    again = f"In the project's folder: `{install_command()}`"
    stock = [v for v in versions if "+vmamba" not in v]
    if stock:
        detail = f"pip has stock ultralytics {stock[0]}: outside the project's folder, that is what runs"
        return Row("installation", PROBLEM, detail, again)
    if not versions:
        return Row("installation", ABSENT, "pip knows of none: works in this folder, without the yolo command", again)
    return Row("installation", OK, f"VMamba-YOLO {versions[0]}")


def torch_row(facts: Torch) -> Row:
    """Return PyTorch's version and what it was built for."""
    build = f"built for CUDA {facts.cuda}" if facts.cuda else f"built for ROCm {facts.hip}" if facts.hip else "CPU only"
    return Row("PyTorch", OK, f"{facts.version}, {build}, {threads()}")


def threads() -> str:
    """Return the number of threads that PyTorch and the C++ scan take."""
    n = torch.get_num_threads()
    return f"{n} thread{'s' if n > 1 else ''}"


def threads_row() -> Row:
    """Return how many cores models of this fork take on a CPU."""
    here, asked = cores_here(), cores.chosen_threads()
    if asked is None:
        return Row("threads", OK, f"{here} of {here} cores for models of this fork")
    advice = "Unset OMP_NUM_THREADS to take all" if asked < here else ""
    return Row("threads", OK, f"{asked} of {here} cores, as OMP_NUM_THREADS says", advice)


def driver_row() -> Row:
    """Return the NVIDIA driver, its GPUs and the newest CUDA it can serve, as nvidia-smi tells."""
    item = "NVIDIA driver"
    said = ask("nvidia-smi", folders=DRIVER_FOLDERS)
    if not said.found:
        if platform.system() == "Darwin":
            return Row(item, ABSENT, "none for macOS")
        advice = "Only if this machine has an NVIDIA GPU: install its driver, https://www.nvidia.com/drivers"
        if Path("/.dockerenv").exists():
            advice += "; in a container: start it with `docker run --gpus all`"
        return Row(item, ABSENT, "nvidia-smi not found", advice)
    if not said.ok:
        text = " ".join(said.text.split())[:200]
        if "mismatch" in text.lower():
            return Row(item, PROBLEM, text, "The driver was updated while it ran: restart the machine")
        return Row(item, PROBLEM, text, "Restart the machine; if it stays, install the driver again")
    version = re.search(r"Driver Version:\s*([\d.]+)", said.text)
    newest = re.search(r"CUDA[\w ]* Version:\s*([\d.]+)", said.text)
    gpus = [x.strip() for x in ask("nvidia-smi", "--list-gpus", folders=DRIVER_FOLDERS).text.splitlines()]
    gpus = [re.sub(r"^GPU \d+: | \(UUID:.*", "", x) for x in gpus if x.startswith("GPU ")]
    found = {"driver": version and version[1], "cuda": newest and newest[1], "gpus": gpus}
    detail = f"{found['driver'] or 'version unknown'}, serves CUDA up to {found['cuda'] or '(unknown)'}"
    return Row(item, OK, f"{detail}: {_several(gpus) or 'no GPU listed'}", data=found)


def cuda_row(facts: Torch, driver: Row) -> Row:
    """Return whether PyTorch can use an NVIDIA (or ROCm) GPU, and if not which of the usual causes it is.

    Args:
        facts (Torch): Result of `torch_facts`.
        driver (Row): Result of `driver_row`.
    """
    item = "torch.cuda"
    wheel = f"choose CUDA at {PYTORCH}, run `pip uninstall -y torch torchvision`, then the line shown there"
    if facts.available:
        gpus = _several([f"{name} ({gib:.0f} GiB, sm_{major}{minor})" for name, gib, major, minor in facts.devices])
        old = [] if facts.hip else [d for d in facts.devices if not _compiled_for(d[2], d[3], facts.architectures)]
        if old:
            what = f"PyTorch {facts.version} has no code for {old[0][0]} (sm_{old[0][2]}{old[0][3]})"
            how = f"Take a build for another CUDA release: {wheel}. Until then, `device=cpu`"
            return Row(item, PROBLEM, what, how)
        return Row(item, OK, f"available: {gpus}")
    if driver.state == ABSENT:
        return Row(item, ABSENT, "not available, as there is no NVIDIA driver: the CPU is used")
    if driver.state == PROBLEM:
        return Row(item, PROBLEM, "not available, as the driver does not work: the CPU is used", "See NVIDIA driver")
    if not (facts.cuda or facts.hip):
        how = f"The driver is there, PyTorch is a CPU build (what pip brings on Windows): {wheel}"
        return Row(item, PROBLEM, "not available: this PyTorch was built without CUDA", how)
    newest = driver.data.get("cuda")
    if facts.cuda and newest and int(newest.split(".")[0]) < int(facts.cuda.split(".")[0]):
        why = f"not available: PyTorch is for CUDA {facts.cuda}, the driver serves up to {newest}"
        how = f"Update the driver, https://www.nvidia.com/drivers; or take a PyTorch for CUDA {newest} or less: {wheel}"
        return Row(item, PROBLEM, why, how)
    how = "See whether CUDA_VISIBLE_DEVICES hides the GPU; else restart the machine, then install the driver again"
    return Row(item, PROBLEM, f"not available: {facts.warning or 'PyTorch gives no reason'}", how)


def _compiled_for(major: int, minor: int, architectures: Sequence[str]) -> bool:
    """Return whether CUDA code for these architectures runs on a GPU of that compute capability.

    Examples:
        >>> _compiled_for(8, 9, ["sm_80", "sm_90"]), _compiled_for(6, 1, ["sm_70", "sm_80"])
        (True, False)
        >>> _compiled_for(12, 1, ["sm_90", "compute_90"])  # compute_: compiled on the spot for anything newer
        True
    """
    for name in architectures:
        kind, _, number = name.partition("_")
        number = re.match(r"\d+", number)
        has = divmod(int(number[0]), 10) if number else (0, 0)
        if (has[0] == major or kind == "compute") and has <= (major, minor):
            return True
    return not architectures


def mps_row() -> Row:
    """Return whether PyTorch can use the GPU of a Mac."""
    ok = torch.backends.mps.is_available()
    return Row("torch MPS", OK if ok else ABSENT, "available: train with `device=mps`" if ok else "not available")


def nvcc_row() -> Row:
    """Return nvcc's version; nobody needs it, and people who come from the recipe look for it."""
    said = ask("nvcc", "-V")
    release = re.search(r"release ([\d.]+)", said.text)
    if said.ok and release:
        return Row("nvcc", OK, f"{release[1]}; not used, not needed")
    detail = said.text if not said.found else "found, but it does not work"
    return Row("nvcc", ABSENT, f"{detail}; not needed")


def compiler_row(wanted: bool) -> Row:
    """Return the C++ compiler that an installation would use.

    Args:
        wanted (bool): Whether the compiled backend is missing, which makes the lack of a compiler a problem.
    """
    system = platform.system()
    found = {"Windows": _msvc, "Darwin": _xcode}.get(system, _unix_compiler)()
    if isinstance(found, Row):
        return found
    if not wanted:
        return Row("C++ compiler", ABSENT, f"{found}; only needed to compile again")
    managers = [line for program, line in PACKAGE_MANAGERS.items() if shutil.which(program)]
    how = {"Windows": BUILD_TOOLS, "Darwin": "xcode-select --install"}.get(system) or (*managers, "install g++")[0]
    without_root = ", without root `conda install -c conda-forge gxx`" if system == "Linux" else ""
    brings = f"`{install_command()}` with a network, which brings a compiler for the time it takes"
    return Row("C++ compiler", PROBLEM, found, f"{brings}. To have one: `{how}`{without_root}")


def _unix_compiler() -> Row | str:
    """Return the row of a compiler that works, or what is missing; setuptools takes the one Python was built with."""
    expected = (sysconfig.get_config_var("CXX") or "c++").split()[0]
    missing = "no g++ or clang++"
    for name in dict.fromkeys((expected, "c++", "g++", "clang++")):
        said = ask(name, "--version")
        label = Path(name).name
        # Packagers put a version of their own in brackets: g++ (GCC) 4.8.5 20150623 (Red Hat 4.8.5-44)
        version = re.search(r"(\d+)\.[\d.]*\d", re.sub(r"\([^)]*\)", "", said.text.partition("\n")[0]))
        if not said.ok or not version:
            continue
        if int(version[1]) < (5 if "clang" in said.text else 7):
            missing = f"{label} {version[0]} is too old: C++17 takes g++ 7 or clang++ 5"
            continue
        if name == expected or _same_program(name, expected):
            return Row("C++ compiler", OK, f"{label} {version[0]}")
        how = f"`CC={label} CXX={label} {install_command()}`, as this Python asks for {Path(expected).name}"
        return Row("C++ compiler", OK, f"{label} {version[0]}", f"To compile: {how}")
    return missing


def _same_program(one: str, other: str) -> bool:
    """Return whether two names on the PATH lead to the same file."""
    a, b = shutil.which(one), shutil.which(other)
    return bool(a and b) and os.path.realpath(a) == os.path.realpath(b)


def _xcode() -> Row | str:
    """Return the row of Apple's compiler; /usr/bin/c++ is always there, and without the tools it opens a dialogue."""
    return _unix_compiler() if ask("xcode-select", "-p").ok else "no Xcode command line tools"


def _msvc() -> Row | str:
    """Return the row of Microsoft's compiler, which setuptools finds through vswhere, on the PATH or not."""
    installer = os.path.expandvars("%ProgramFiles(x86)%") + "/Microsoft Visual Studio/Installer"
    tools = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
    query = ("-latest", "-products", "*", "-requires", tools, "-property", "installationVersion")
    said = ask("vswhere", *query, folders=(installer,))
    if said.ok and re.match(r"\d+\.\d", said.text):
        return Row("C++ compiler", OK, f"Visual Studio {said.text.split()[0]}")
    said = ask("cl")  # its version is in a banner in the system's language
    version = re.search(r"\d+\.\d+\.[\d.]*\d", said.text)
    return Row("C++ compiler", OK, f"cl {version[0]}") if said.ok and version else "no Visual Studio build tools"


def packages_row() -> Row:
    """Return which of the recipe's CUDA packages are here; only VMAMBA_BACKEND=mamba_ssm uses one."""
    found = []
    for name in ("mamba-ssm", "causal-conv1d"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if found:
        return Row("recipe's kernels", OK, f"{', '.join(found)}; only for VMAMBA_BACKEND=mamba_ssm")
    return Row("recipe's kernels", ABSENT, "mamba-ssm, causal-conv1d: not needed")


def backend_rows() -> list[Row]:
    """Return a row for every scan backend: does it work here, and if not why not."""
    rows = []
    for name, ok, reason in registry.report():
        advice = ""
        if not ok and name == "cpu":
            library = registry.get(name).find_library()
            file = (
                f"delete {library.name} in ultralytics/nn/Addmodules/selective_scan/backends, then " if library else ""
            )
            advice = f"Works without, {SLOWER} times slower on CPUs. To compile it: {file}`{install_command()}`"
        rows.append(Row(f"backend {name}", OK if ok else ABSENT, reason, advice, {"backend": name}))
    return rows


def choice_rows() -> list[Row]:
    """Return a row for each device: the backend that the layers get there."""
    rows = []
    forced = "" if registry.forced() == registry.AUTO else ", forced by VMAMBA_BACKEND"
    for device in devices():
        try:
            name = chosen(device)
        except RuntimeError as e:
            how = f"Unset VMAMBA_BACKEND, or choose one of {', '.join(registry.names())}"
            rows.append(Row(f"scan on {device}", PROBLEM, str(e), how))
        else:
            rows.append(Row(f"scan on {device}", OK, f"{name}{forced}", data={"device": device, "backend": name}))
    return rows


def linear_row() -> Row:
    """Return whose product the linear layers of a Mamba block get on the CPU, in float32."""
    backend = next((b for b in registry.candidates() if b.device == "cpu" and b.works and b.columns), None)
    if backend is None:
        return Row("linear on cpu", OK, "PyTorch's")
    return Row("linear on cpu", OK, f"{backend.name}, for multiples of {backend.columns} outputs; else PyTorch's")


def double_row() -> Row:
    """Return the backend that float64 tensors get on the CPU, which is not the fastest."""
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    scan = Scan(x, x, x[0], x, x, x[0, 0], x, x[0, 0])
    for backend in registry.candidates():  # `registry.choose` would say in the log that such scans are slow
        if not registry.why_not(backend, "scan", scan):
            return Row("float64 on cpu", OK, f"{backend.name}: for tests, slower than float32")
    return Row("float64 on cpu", ABSENT, f"none: '{registry.forced()}' is forced")


def chosen(device: str) -> str:
    """Return the backend that float32 tensors on a device get.

    Raises:
        RuntimeError: If a backend is forced that cannot take them, or the device does not work.
    """
    x = torch.zeros(1, 1, 1, 1, device=device)
    return registry.choose("scan", Scan(x, x, x[0], x, x, x[0, 0], x, x[0, 0])).name


def environment() -> list[Row]:
    """Return the rows about this machine, in the order of the recipe's own checks."""
    facts, driver = torch_facts(), driver_row()
    rows = [system_row(), installation_row(), torch_row(facts), threads_row(), driver, cuda_row(facts, driver)]
    if platform.system() == "Darwin":
        rows.append(mps_row())
    compiled = any(name == "cpu" and ok for name, ok, _ in registry.report())
    return [
        *rows,
        nvcc_row(),
        packages_row(),
        compiler_row(wanted=not compiled),
        *backend_rows(),
        *choice_rows(),
        linear_row(),
        double_row(),
    ]
