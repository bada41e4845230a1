# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The peers of the GPU benchmark: how their kernels are built for one GPU, and the recipe's scan and module on them.

Sources come with whoever measures; nothing is fetched, and nothing of theirs is in this repository. How the kernels
are called was read in mamba-ssm 2.3.2 and causal-conv1d 1.7.0.
"""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ("MODULES", "absent", "as_recipe", "build", "scan", "sources")

MODULES = ("selective_scan_cuda", "causal_conv1d_cuda")
FLAGS = [  # without -std: PyTorch adds what its headers need
    "-O3",
    *(f"-U__CUDA_NO_{t}_{w}__" for t in ("HALF", "BFLOAT16", "BFLOAT162") for w in ("OPERATORS", "CONVERSIONS")),
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
    "--threads=2",
]
TYPES = ("float", "at::Half", "at::BFloat16")
MEASURED_CONVS = [
    (f"causal_conv1d_{way}_cuda", i, w) for way in ("fwd", "bwd") for i in TYPES for w in dict.fromkeys(("float", i))
]


def absent(*modules: str) -> str | None:
    """Return why one of the peers' modules cannot be used, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    for name in modules:
        try:
            import_module(name)
        except (ImportError, OSError) as e:  # OSError: built for another PyTorch or CUDA
            return f"{name} cannot be imported: {e}"
    return None


# Building


def sources(folder: Path, into: Path) -> tuple[str, list[Path]]:
    """Copy of a peer's kernels what is measured, since the rest is most of their compile time.

    Of mamba-ssm that is all but the complex ones; of causal-conv1d those for tokens innermost, with weights of float32
    or of the tokens' dtype, each in a file of its own, so that they are compiled side by side.

    Args:
        folder (Path): Source of mamba-ssm or causal-conv1d.
        into (Path): Where the copy goes.

    Returns:
        (tuple[str, list[Path]]): The module's name, and what to compile.

    Raises:
        SystemExit: If the folder holds neither.
    """
    scans, convs = folder / "csrc/selective_scan/selective_scan.cpp", folder / "csrc/causal_conv1d.cpp"
    found = next((p for p in (scans, convs) if p.is_file()), None)
    if found is None:
        raise SystemExit(f"{folder} holds neither {scans.relative_to(folder)} nor {convs.relative_to(folder)}")
    into.mkdir(parents=True, exist_ok=True)
    copied = []
    for file in sorted(found.parent.iterdir()):
        if not file.is_file() or "_complex" in file.name:
            continue
        lines = file.read_text(encoding="utf-8").splitlines()
        copies = {file.name: lines}
        if file.suffix == ".cu":
            rest = [x for x in lines if not x.startswith("template void")]
            made = [x for x in lines if x.startswith("template void") and "complex_t" not in x]
            if found == scans:
                copies = {file.name: [*rest, *made]}
            else:
                made = [x for x in made if any(f"{name}<{i}, {w}>" in x for name, i, w in MEASURED_CONVS)]
                copies = {f"{file.stem}_{i}.cu": [*rest, x] for i, x in enumerate(made)}
        for name, text in copies.items():
            (into / name).write_text("\n".join(text) + "\n", encoding="utf-8")
            if file.suffix in (".cu", ".cpp"):
                copied.append(into / name)
    module, missing = (MODULES[1], _no_convs()) if found == convs else (MODULES[0], _no_complex())
    (into / "not_measured.cpp").write_text(missing, encoding="utf-8")
    return module, [*copied, into / "not_measured.cpp"]


def _stand_ins(header: str, kernels: list[tuple[str, str, str, str]]) -> str:
    """Return a source of kernels (name, its parameters' type, its template arguments) that only say they are not there.

    The peers' dispatch names them all.
    """
    lines = ["#include <ATen/ATen.h>", "#include <c10/cuda/CUDAStream.h>", "#include <c10/util/complex.h>"]
    lines += [f'#include "{header}"']
    for name, params in dict.fromkeys(k[:2] for k in kernels):
        lines.append(f"template <typename i, typename w> void {name}({params}&, cudaStream_t);")
    for name, params, i, w in kernels:
        lines.append(
            f"template <> void {name}<{i}, {w}>({params}&, cudaStream_t) "
            f'{{ TORCH_CHECK(false, "{name}<{i}, {w}> was not built: it is not measured"); }}'
        )
    return "\n".join(lines) + "\n"


def _no_complex() -> str:
    """Return stand-ins for the complex scans."""
    ways = ("fwd", "SSMParamsBase"), ("bwd", "SSMParamsBwd")
    kernels = [(f"selective_scan_{way}_cuda", params, i, "c10::complex<float>") for way, params in ways for i in TYPES]
    return _stand_ins("selective_scan.h", kernels)


def _no_convs() -> str:
    """Return stand-ins for the convolutions that are not measured."""
    ways = [(f"{layout}{way}", way) for way in ("fwd", "bwd") for layout in ("", "channellast_")] + [("update", "")]
    kernels = [
        (f"causal_conv1d_{way}_cuda", "ConvParamsBwd" if kind == "bwd" else "ConvParamsBase", i, w)
        for way, kind in ways
        for i in TYPES
        for w in TYPES
    ]
    return _stand_ins("causal_conv1d.h", [k for k in kernels if (k[0], *k[2:]) not in MEASURED_CONVS])


def build(folder: Path, into: Path) -> None:
    """Compile a peer's module into a folder, for compute capability 9.0 only."""
    import os

    from torch.utils.cpp_extension import load

    os.environ["TORCH_CUDA_ARCH_LIST"] = "9.0"
    begin = time.perf_counter()
    name, files = sources(folder, into / f"src-{folder.name}")
    load(
        name,
        [str(s) for s in files],
        extra_cflags=["-O3"],
        extra_cuda_cflags=FLAGS,
        extra_include_paths=[str(files[0].parent)],
        build_directory=str(into),
        verbose=True,
    )
    print(f"{name} was built in {time.perf_counter() - begin:.0f} s")


# The recipe's scan


class _Scan(torch.autograd.Function):
    """One forward scan of `selective_scan_cuda`, as mamba-ssm's own interface calls it."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias):
        u, delta, B, C = (x.contiguous() for x in (u, delta, B, C))  # it takes tokens innermost only
        out, kept, *_ = import_module(MODULES[0]).fwd(u, delta, A, B, C, D, None, bias, True)
        ctx.save_for_backward(u, delta, A, B, C, D, bias, kept)
        return out

    @staticmethod
    def backward(ctx, dout):
        *saved, bias, kept = ctx.saved_tensors
        grads = import_module(MODULES[0]).bwd(*saved, None, bias, dout.contiguous(), kept, None, None, True, False)
        return (*grads[:7],)


def scan(u, delta, A, B, C, D, bias, orders: list[int]) -> Tensor:
    """Scan the directions the recipe's way: each alone, reversed ones on flipped tokens, their outputs flipped back."""
    outs = []
    for k, order in enumerate(orders):
        tokens = [x[:, k].flip(-1) if order else x[:, k] for x in (u, delta)]
        weights = [(x[:, k].flip(-1) if order else x[:, k]).unsqueeze(1) for x in (B, C)]
        out = _Scan.apply(*tokens, A[k], *weights, D[k], bias[k])
        outs.append(out.flip(-1) if order else out)
    return torch.stack(outs, 1)


# The recipe's module


class _Inner(torch.autograd.Function):
    """Conv, projections, scan and gate of one direction on the peers' kernels; conv and delta are computed again.

    Tokens are innermost: xz (B, 2D, L) -> (B, D, L). Kept for backward is what the recipe keeps.
    """

    @staticmethod
    def _again(xz, conv_w, conv_b, dt_proj, x_dbl):
        """Return the convolution's output, and delta if the projections are there already."""
        x = xz[:, : xz.shape[1] // 2]
        u = torch.empty_like(x, memory_format=torch.contiguous_format)
        import_module(MODULES[1]).causal_conv1d_fwd(x, conv_w, conv_b, None, None, u, None, True)
        if x_dbl is None:
            return u, None
        delta = dt_proj @ x_dbl[:, : dt_proj.shape[1]].t()  # (D, B L)
        return u, delta.view(-1, xz.shape[0], xz.shape[2]).transpose(0, 1).contiguous()

    @staticmethod
    def forward(ctx, xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias):
        (batch, width, length), rank, state = xz.shape, dt_proj.shape[1], A.shape[1]
        u, _ = _Inner._again(xz, conv_w, conv_b, dt_proj, None)
        x_dbl = F.linear(u.transpose(1, 2).reshape(batch * length, -1), x_proj)  # (B L, R + 2N)
        delta = (dt_proj @ x_dbl[:, :rank].t()).view(-1, batch, length).transpose(0, 1).contiguous()
        B, C = (
            x.view(batch, length, state).transpose(1, 2).unsqueeze(1).contiguous()
            for x in x_dbl[:, rank:].split(state, 1)
        )
        z = xz[:, width // 2 :]
        out, kept, gated = import_module(MODULES[0]).fwd(u, delta, A, B, C, D, z, dt_bias, True)
        ctx.save_for_backward(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, x_dbl, B, C, out, kept)
        return gated

    @staticmethod
    def backward(ctx, dout):
        xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, x_dbl, B, C, out, kept = ctx.saved_tensors
        rank, half = dt_proj.shape[1], xz.shape[1] // 2
        u, delta = _Inner._again(xz, conv_w, conv_b, dt_proj, x_dbl)
        dxz = torch.empty_like(xz)
        dx, dz = dxz[:, :half], dxz[:, half:]
        du, ddelta, dA, dB, dC, dD, ddt_bias, *_ = import_module(MODULES[0]).bwd(
            u, delta, A, B, C, D, xz[:, half:], dt_bias, dout.contiguous(), kept, out, dz, True, False
        )
        flat_u, flat_du, flat_ddelta = (t.transpose(0, 1).reshape(half, -1) for t in (u, du, ddelta))  # (D, B L)
        dx_dbl = torch.cat(
            [flat_ddelta.t() @ dt_proj, *(t.squeeze(1).transpose(1, 2).flatten(0, 1) for t in (dB, dC))], 1
        )
        ddt_proj, dx_proj = flat_ddelta @ x_dbl[:, :rank], dx_dbl.t() @ flat_u.t()
        du = torch.addmm(flat_du, x_proj.t(), dx_dbl.t()).view(half, xz.shape[0], -1).transpose(0, 1).contiguous()
        dw, db = (torch.zeros_like(t, dtype=torch.float32) for t in (conv_w, conv_b))
        x = xz[:, :half]
        import_module(MODULES[1]).causal_conv1d_bwd(x, conv_w, conv_b, du, None, None, None, dx, dw, db, None, True)
        return dxz, dw.to(conv_w.dtype), db.to(conv_b.dtype), dx_proj, ddt_proj, dA, dD, ddt_bias


def _forward(self, hidden: Tensor) -> Tensor:
    """Mix tokens (B, L, d_model) as the recipe's Mamba does, which replaces that of a `Mamba` of ours."""
    xz = F.linear(hidden, self.in_proj.weight, self.in_proj.bias).transpose(1, 2).contiguous()
    outs = []
    with torch.autocast(hidden.device.type, enabled=False):
        for suffix, A_log in (("", self.A_log), ("_b", self.A_b_log)):
            conv, x_proj, dt_proj, D = (getattr(self, n + suffix) for n in ("conv1d", "x_proj", "dt_proj", "D"))
            out = _Inner.apply(
                xz.flip(-1) if suffix else xz,
                conv.weight.squeeze(1),
                conv.bias,
                x_proj.weight.to(xz.dtype),
                dt_proj.weight.to(xz.dtype),
                -torch.exp(A_log.float()),
                D.float(),
                dt_proj.bias.float(),
            )
            outs.append(out.flip(-1) if suffix else out)
    return F.linear((outs[0] + outs[1]).transpose(1, 2), self.out_proj.weight, self.out_proj.bias)


def as_recipe(model: nn.Module) -> nn.Module:
    """Let every two-direction Mamba of a model run as the recipe's does, with the same parameters."""
    from ultralytics.nn.Addmodules import Mamba

    for module in model.modules():
        if isinstance(module, Mamba):
            module.forward = _forward.__get__(module)
    return model
