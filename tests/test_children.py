# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What is put on, or in place of, a child of our layers counts: hooks, subclasses, pruning, LoRA, parametrizations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from ultralytics.nn.Addmodules.layers.csp import C2fSS2D, C2fVSS
from ultralytics.nn.Addmodules.layers.graft import Graft
from ultralytics.nn.Addmodules.layers.ss2d import SS2D, ConvSS2D
from ultralytics.nn.Addmodules.layers.vss import VSSBlock
from ultralytics.nn.Addmodules.VMamba import Mamba, MambaLayer


def awake() -> Graft:
    """Return a graft whose projection has left zero, so that what its block does is seen."""
    graft = Graft(6)
    nn.init.normal_(graft.proj.weight)
    return graft


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Mamba": lambda: Mamba(6, d_state=3),
    "Mamba v1": lambda: Mamba(6, d_state=3, bimamba_type="v1", bias=True),
    "Mamba v2": lambda: Mamba(6, d_state=3, bimamba_type="v2"),
    "MambaLayer": lambda: MambaLayer(6, d_state=3),
    "SS2D": lambda: SS2D(6, d_state=3),
    "SS2D without gate": lambda: SS2D(6, d_state=1, gate=False, bias=True),
    "ConvSS2D": lambda: ConvSS2D(6),
    "VSSBlock": lambda: VSSBlock(6, mlp_ratio=2),
    "C2fVSS": lambda: C2fVSS(6, 8),
    "C2fSS2D": lambda: C2fSS2D(6, 8),
    "Graft": awake,
}
CASES = [(kind, name) for kind, make in LAYERS.items() for name, _ in make().named_modules() if name]
# Upstream's activation is one object for all layers: what is put on it stays
CALLED = [
    (kind, name)
    for kind, name in CASES
    if not isinstance(LAYERS[kind]().get_submodule(name), nn.ModuleList) and not name.endswith("act")
]
LINEAR = [(kind, name) for kind, name in CALLED if isinstance(LAYERS[kind]().get_submodule(name), nn.Linear)]


def build(kind: str) -> tuple[nn.Module, Tensor]:
    """Return a seeded layer in float64 and an input."""
    torch.manual_seed(0)
    layer = LAYERS[kind]().double().eval()
    shape = (2, 5, 6) if isinstance(layer, Mamba) else (2, 6, 3, 5)
    return layer, torch.randn(shape, dtype=torch.float64)


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the output of a layer, and the gradients by its input and parameters of a fixed projection of it."""
    x = x.clone().requires_grad_()
    y = layer(x)
    weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return y.detach(), list(torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize(("kind", "name"), CALLED)
def test_every_sort_of_hook_fires(kind: str, name: str) -> None:
    layer, x = build(kind)
    want = gradients(layer, x)
    child, fired = layer.get_submodule(name), []
    child.register_forward_pre_hook(lambda *_: fired.append("before"))
    child.register_forward_hook(lambda *_: fired.append("after"))
    child.register_full_backward_pre_hook(lambda *_: fired.append("backward before"))
    child.register_full_backward_hook(lambda *_: fired.append("backward after"))
    got = gradients(layer, x)
    assert set(fired) == {"before", "after", "backward before", "backward after"}
    for a, b in zip([got[0], *got[1]], [want[0], *want[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def ramp(x: Tensor) -> Tensor:
    """Multiply by numbers that differ along the last axis: a norm would take out what is the same for all channels."""
    return x * torch.linspace(2, 3, x.shape[-1], dtype=x.dtype)


@pytest.mark.parametrize("sort", ["hook", "pre-hook", "subclass", "forward", "backward hook"])
@pytest.mark.parametrize(("kind", "name"), CALLED)
def test_what_they_change_counts_forward_and_backward(kind: str, name: str, sort: str) -> None:
    layer, x = build(kind)
    plain = gradients(layer, x)
    child = layer.get_submodule(name)
    if sort == "hook":
        child.register_forward_hook(lambda m, x, y: ramp(y))
    elif sort == "pre-hook":
        child.register_forward_pre_hook(lambda m, x: (ramp(x[0]), *x[1:]))
    elif sort == "subclass":
        base = type(child)
        child.__class__ = type("More", (base,), {"forward": lambda self, x: ramp(base.forward(self, x))})
    elif sort == "forward":  # as tools that replace a module's method
        child.forward = lambda x, forward=child.forward: ramp(forward(x))
    else:
        child.register_full_backward_hook(lambda m, x, y: tuple(None if g is None else 2 * g for g in x))
    changed = gradients(layer, x)
    if sort != "backward hook":
        assert (changed[0] - plain[0]).abs().max() > 1e-9
        assert any(not torch.allclose(a, b, rtol=1e-7, atol=0) for a, b in zip(changed[1], plain[1]))
    else:
        assert torch.equal(changed[0], plain[0]) or torch.allclose(changed[0], plain[0], rtol=1e-10, atol=1e-12)
        assert not torch.allclose(changed[1][0], plain[1][0], rtol=1e-7, atol=0)


class Lora(nn.Module):
    """A linear layer with a low-rank term, as PEFT puts it in place of an nn.Linear."""

    def __init__(self, base: nn.Linear) -> None:
        """Wrap a layer."""
        super().__init__()
        self.base_layer = base
        self.a = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.b = nn.Parameter(torch.zeros(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Add the term."""
        return self.base_layer(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize(("kind", "name"), LINEAR)
def test_lora_learns(kind: str, name: str) -> None:
    layer, x = build(kind)
    want = layer(x).detach()
    parent, _, last = name.rpartition(".")
    lora = Lora(layer.get_submodule(name))
    setattr(layer.get_submodule(parent), last, lora)
    y = layer(x)
    torch.testing.assert_close(y.detach(), want, rtol=1e-10, atol=1e-12)
    y.square().sum().backward()
    assert lora.b.grad.abs().max() > 0
    with torch.no_grad():
        lora.b.normal_()
    assert not torch.allclose(layer(x), want)


@pytest.mark.parametrize(("kind", "name"), LINEAR)
def test_pruned_layers_train(kind: str, name: str) -> None:
    """Twice backward, and what was pruned stays zero while the rest moves."""
    layer, x = build(kind)
    child = layer.get_submodule(name)
    prune.l1_unstructured(child, "weight", amount=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = child.weight_orig.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    moved = child.weight_orig.detach() != before
    assert moved.any()
    assert not moved[child.weight_mask == 0].any()


@pytest.mark.parametrize(("kind", "name"), LINEAR)
def test_parametrizations_get_gradients(kind: str, name: str) -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    layer, x = build(kind)
    child = layer.get_submodule(name)
    with torch.no_grad():
        child.weight.mul_(2)
    want = layer(x).detach()
    with torch.no_grad():
        child.weight.div_(2)
    parametrize.register_parametrization(child, "weight", Double())
    y = layer(x)
    torch.testing.assert_close(y.detach(), want, rtol=1e-10, atol=1e-12)
    y.square().sum().backward()
    assert child.parametrizations.weight.original.grad.abs().max() > 0


def test_hooks_for_all_modules_of_the_process_fire() -> None:
    layer, x = build("MambaLayer")
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    try:
        layer(x)
    finally:
        handle.remove()
    assert sorted(seen) == sorted(
        ["LayerNorm", *["Linear"] * 4, *["StepProjection"] * 2, *["Conv1d"] * 2, "Mamba", "MambaLayer"]
    )


@pytest.mark.parametrize("name", ["norm", "mamba", "mamba.in_proj"])
def test_a_child_compiled_by_itself_is_called(name: str) -> None:
    layer, x = build("MambaLayer")
    want, graphs = layer(x), []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    layer.get_submodule(name).compile(backend=backend)
    torch.testing.assert_close(layer(x), want)
    assert graphs


@pytest.mark.parametrize("width", [1, 8, 16, 32])
def test_a_mamba_of_another_width_is_named_with_its_width(width: int) -> None:
    layer = MambaLayer(12)
    layer.mamba = Mamba(width, bimamba_type="v2")
    with torch.no_grad(), pytest.raises(ValueError, match=rf"Mamba expects .* d_model = {width} .*, got \(1, 6, 12\)"):
        layer(torch.zeros(1, 12, 2, 3))


def test_a_trace_has_the_children_by_name_and_the_size_of_the_norm_as_a_number() -> None:
    layer, x = build("MambaLayer")
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
    assert {"norm", "mamba"} <= {n.s("name") for n in traced.graph.nodes() if n.kind() == "prim::GetAttr"}
    (norm,) = (n for n in traced.inlined_graph.nodes() if n.kind() == "aten::layer_norm")
    (size,) = list(norm.inputs())[1].node().inputs()
    assert size.node().kind() == "prim::Constant"
    assert size.toIValue() == 6


@pytest.mark.parametrize("kind", ["Mamba", "Mamba v1", "Mamba v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_fast_path_children_are_called(kind: str, dtype: torch.dtype) -> None:
    layer, x = build(kind)
    layer, x = layer.to(dtype), x.to(dtype)
    fast = layer(x)
    layer.use_fast_path = False
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(layer(x), fast, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("Mamba", "in_proj", r"\(2, 5, 24\)"),
        ("Mamba v2", "x_proj_b", r"\(2, 5, 7\)"),
        ("SS2D", "in_proj", r"\(2, 15, 24\)"),
    ],
)
def test_a_child_that_cannot_serve_is_named(kind: str, name: str, shape: str) -> None:
    layer, x = build(kind)
    setattr(layer, name, nn.Identity())
    owner = kind.split()[0]
    with pytest.raises(ValueError, match=rf"{owner}: its {name} \(Identity\) gave .*, expected {shape}"):
        layer(x)
    setattr(layer, name, nn.Linear(3, 3).double())
    layer.get_submodule(name).register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=rf"{owner}: its {name} \(Linear\) cannot take a tensor .* of torch.float64"):
        layer(x)


def conv(**form) -> Callable[[Mamba], None]:
    """Return what puts another convolution in place of a layer's own."""

    def put(m: Mamba) -> None:
        given = {"kernel_size": 4, "padding": 3, "groups": 12, **form}
        m.conv1d = nn.Conv1d(12, 12, **given, dtype=torch.float64)

    return put


FORMS: dict[str, Callable[[Mamba], None]] = {
    "gaps": conv(padding=6, dilation=2),
    "other padding": conv(padding=5),
    "padding with the last value": conv(padding_mode="replicate"),
    "channels mixed": conv(groups=4),
    "convolution without bias": lambda m: m.conv1d.register_parameter("bias", None),
    "the other convolution without bias": lambda m: m.conv1d_b.register_parameter("bias", None),
    "x_proj with bias": lambda m: m.x_proj.register_parameter("bias", nn.Parameter(torch.ones(7, dtype=torch.float64))),
    "steps without bias": lambda m: m.dt_proj.register_parameter("bias", None),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_plain_child_of_another_form_counts(form: str) -> None:
    layer, x = build("Mamba v2")
    before = layer(x)
    FORMS[form](layer)
    fast = gradients(layer, x)
    layer.use_fast_path = False
    called = gradients(layer, x)
    assert (fast[0] - before).abs().max() > 1e-6
    for a, b in zip([fast[0], *fast[1]], [called[0], *called[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_norm_over_all_tokens_counts() -> None:
    layer, x = build("MambaLayer")
    layer.norm = nn.LayerNorm((15, 6), dtype=torch.float64)
    want = layer.mamba(layer.norm(x.flatten(2).transpose(1, 2))).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), want)
