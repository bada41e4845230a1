# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The forms of a scan in an exported graph, in each runtime and for each state size: which is fastest where.

`selective_scan/export/table.py` holds what this benchmark found. A form whose output is not that of the float64
reference gets no time.

Usage:
    python benchmarks/export_forms.py                        # every runtime; several minutes
    python benchmarks/export_forms.py --runtimes openvino    # one; the rows of the others stay in the result
    python benchmarks/export_forms.py --quick                # tiny maps; prints, writes nothing
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.export_cpu import needs, runner  # noqa: E402
from benchmarks.rendering import ms, source, table  # noqa: E402
from benchmarks.result import RESULTS  # noqa: E402
from benchmarks.timing import Absent, Timed, distance, heading, in_process, interleave, parse, write  # noqa: E402
from ultralytics.nn.Addmodules.layers.cross_scan import cross_scan  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import use_backend  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.export import exporting_for  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.export.table import FLAT, LEVELS, LOOP, TABLE  # noqa: E402

COMMAND = "python benchmarks/export_forms.py"
FORMS = (LOOP, LEVELS, FLAT)
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torchscript": "TorchScript"}
STATES = (1, 2, 4, 8, 16)
# Directions, channels, height and width: VMamba-yolon's layers at strides 16 and 32, and a wide one of two directions
SHAPES = ((4, 64, 40, 40), (4, 128, 20, 20), (2, 128, 40, 40))
LIMIT = 1e-5


class Scans(nn.Module):
    """Scans of a map in several directions, with projections: (1, H W, D) -> same shape."""

    def __init__(self, directions: int, dim: int, height: int, width: int, state: int) -> None:
        """Draw the weights."""
        super().__init__()
        g, rank = torch.Generator().manual_seed(0), -(-dim // 16)
        self.size = height, width

        def draw(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=g) * scale)

        self.x_proj = draw(directions, rank + 2 * state, dim, scale=dim**-0.5)
        self.dt_proj = draw(directions, dim, rank, scale=rank**-0.5)
        self.A_log = draw(directions, dim, state, scale=0.5)
        self.D, self.bias = draw(directions, dim, scale=1), draw(directions, dim, scale=1)

    def forward(self, x: Tensor) -> Tensor:
        """Scan."""
        return cross_scan(x, *self.size, self.x_proj, self.dt_proj, -torch.exp(self.A_log), self.D, self.bias)


def exported(runtime: str, form: str, module: nn.Module, x: Tensor, folder: Path, threads: int) -> Callable:
    """Return a call that runs the scans in a runtime, in one form."""
    with torch.no_grad(), exporting_for(runtime, True, form):
        if runtime == "onnx":
            import onnx
            import onnxslim

            file = folder / "scans.onnx"
            torch.onnx.export(module, x, str(file), opset_version=18, input_names=["images"], dynamo=False)
            onnx.save(onnxslim.slim(onnx.load(file)), file)
            return runner(file, threads, None)
        trace = torch.jit.trace(module, x, strict=False, check_trace=False)
        if runtime == "openvino":
            import openvino

            model = openvino.convert_model(trace, input=x.shape, example_input=x)
            openvino.save_model(model, folder / "scans.xml", compress_to_fp16=False)
            return runner(folder / "scans.xml", threads, "f32")
    trace = torch.jit.freeze(trace.eval())  # not what upstream's loader does, but its constants are folded

    def run(given) -> object:
        with torch.inference_mode():
            return trace(torch.from_numpy(given)).numpy()

    return run


def measure(runtime: str, shape: tuple[int, ...], state: int, threads: int, seconds: float) -> dict:
    """Time the forms side by side."""
    directions, dim, height, width = shape
    row = {"runtime": runtime, "K": directions, "D": dim, "L": height * width, "N": state, "threads": threads}
    try:
        needs(runtime)
    except Absent as e:
        return row | {"absent": str(e)}
    module = Scans(*shape, state).eval()
    x = torch.randn(1, height * width, dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), use_backend("reference"):
        want = module.double()(x.double())
    module.float()
    calls, checks = {}, {}
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            run = exported(runtime, form, module, x, Path(folder), threads)
        error = distance([torch.from_numpy(run(x.numpy()).copy()).double()], [want])
        checks[form] = {"ok": error <= LIMIT, "error": float(f"{error:.2g}")}
        if checks[form]["ok"]:
            calls[form] = Timed(partial(run, x.numpy()))
    timed = interleave(calls, seconds)
    return row | {"check": checks, "times": {form: timed.get(form) for form in FORMS}}


def render(r: dict) -> dict[str, str]:
    """Return the table of a result: the fastest form of each row in bold."""
    rows, notes = [], []
    for row in r["rows"]:
        if "absent" in row:
            notes.append(f"{RUNTIMES[row['runtime']]} not run: {row['absent']}.")
            continue
        of = TABLE[row["runtime"]]
        taken = {form: t and t["median_ms"] for form, t in row["times"].items()}
        best = min((t, form) for form, t in taken.items() if t)[1]
        chosen = FLAT if row["N"] <= of.flat else LEVELS if row["N"] <= of.levels else LOOP
        cells = [f"**{ms(row['times'][f])}**" if f == best else ms(row["times"][f]) for f in FORMS]
        loss = taken[chosen] / taken[best] - 1 if taken[chosen] else None
        shape = f"{row['K']}, {row['D']}, {row['L']}"
        rows.append([RUNTIMES[row["runtime"]], shape, row["N"], *cells, chosen, "" if not loss else f"{loss:+.0%}"])
    head = ["runtime", "K, D, L", "N", *FORMS, "the table takes, for a fixed size", "over the fastest"]
    text = "Milliseconds of one layer's scans with their projections, one picture; the fastest form in bold."
    return {"export_forms": "\n\n".join([text, table(head, rows), *sorted(set(notes)), source(r, COMMAND)])}


def main() -> None:
    """Measure each problem in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    args = parse(parser, seconds=0.3, threads=(1,))
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        keys = "runtime", "state", "threads", "seconds"
        runtime, state, threads, seconds = (job[k] for k in keys)
        print(json.dumps({"rows": [measure(runtime, s, state, threads, seconds) for s in job["shapes"]]}))
        return
    if args.base:
        raise SystemExit("export_forms.py compares forms of a scan; for another commit use export_cpu.py --base.")
    shapes = [[4, 16, 5, 7]] if args.quick else SHAPES
    result = heading("export_forms", args)
    file = args.out or RESULTS / "export_forms.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() and not args.quick else []
    result["rows"] = [row for row in kept if row["runtime"] not in args.runtimes]
    for runtime in args.runtimes:
        for state in STATES:
            for threads in args.threads:
                job = {
                    "runtime": runtime,
                    "state": state,
                    "threads": threads,
                    "shapes": shapes,
                    "seconds": args.seconds,
                }
                for row in in_process(__file__, job)["rows"]:
                    result["rows"].append(row)
                    if "absent" in row:
                        print(f"{runtime}: not run, {row['absent']}", flush=True)
                        continue
                    taken = "  ".join(f"{f} {ms(t)}" for f, t in row["times"].items())
                    errors = "  ".join(f"{c['error']:.0e}" for c in row["check"].values())
                    print(
                        f"{runtime:12} K {row['K']} D {row['D']} L {row['L']} N {state:2}  {taken}  {errors}",
                        flush=True,
                    )
    result["rows"].sort(key=lambda row: (list(RUNTIMES).index(row["runtime"]), row["N"]))
    write(result, args.out)


if __name__ == "__main__":
    main()
