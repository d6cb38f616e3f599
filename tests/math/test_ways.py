"""Each way to compute attention and products gives the same values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from opencrate import attention, products
from opencrate.attention import BlockedAttention
from opencrate.calibration import fixed
from opencrate.operators import complete_ista_matrix, ista, ista_complete, subspace_attention

close = torch.testing.assert_close


def values_of(num_tokens: int, dtype: torch.dtype = torch.float64, dim: int = 8) -> torch.Tensor:
    """``(2, 3, N, p)`` as a model has them: a view of ``(2, N, 3 p)``."""
    drawn = torch.randn(2, num_tokens, 3, dim, generator=torch.Generator().manual_seed(num_tokens), dtype=torch.float64)
    return drawn.to(dtype).transpose(1, 2).requires_grad_()


def mask_of(num_tokens: int, causal: bool) -> torch.Tensor | None:
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril() if causal else None


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 200, 300, 600])
def test_blocks_are_the_formula(num_tokens, causal, monkeypatch):
    """Also where rows, keys and heads do not fill their blocks."""
    monkeypatch.setattr(attention, "BLOCK_BYTES", 4 * 64 * num_tokens * 8)
    V = values_of(num_tokens)
    plain, blocked = (
        subspace_attention(V, 0.3, mask_of(num_tokens, causal)),
        BlockedAttention.apply(V, None, 0.3, causal),
    )
    close(blocked, plain, rtol=1e-12, atol=1e-12)
    expected, found = (torch.autograd.grad(one.sin().sum(), V)[0] for one in (plain, blocked))
    close(found, expected, rtol=1e-11, atol=1e-11)


def test_blocks_can_be_differentiated_twice():
    V = values_of(4, dim=2)[:1, :2].detach().requires_grad_()
    for causal in (False, True):
        assert torch.autograd.gradcheck(lambda V, c=causal: BlockedAttention.apply(V, None, 0.5, c), V)
        assert torch.autograd.gradgradcheck(lambda V, c=causal: BlockedAttention.apply(V, None, 0.5, c), V)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("num_tokens", "causal"), [(65, False), (197, False), (256, True), (577, False)])
def test_half_attention_stays_near_float32(num_tokens, causal, spread):
    """Outputs and gradients in bfloat16, against float64 on the same inputs: at most 2.5 times the fused kernel's."""
    V = (spread * values_of(num_tokens, torch.bfloat16, 64)).detach().requires_grad_()
    exact_V = V.detach().double().requires_grad_()
    exact = subspace_attention(exact_V, 0.125, mask_of(num_tokens, causal))
    weight = torch.randn(exact.shape, dtype=torch.float64).bfloat16()
    exact_gradient = torch.autograd.grad(exact, exact_V, weight.double())[0]

    def errors(out):
        gradient = torch.autograd.grad(out, V, weight)[0]
        pairs = ((out, exact), (gradient, exact_gradient))
        return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]

    fused = errors(F.scaled_dot_product_attention(V, V, V, is_causal=causal, scale=0.125))
    blocked = errors(BlockedAttention.apply(V, None, 0.125, causal))
    assert blocked[0] < attention.HALF_ERROR
    for ours, theirs in zip(blocked, fused):
        assert ours < 2.5 * theirs + 1e-3


SHAPES = [((4, 9, 40), 24), ((2, 24, 16), 48), ((64, 8), 8), ((3, 40, 33), 17)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_onednn_is_as_exact_as_the_default(shape, outputs, bias):
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(shape, generator=draw).requires_grad_()
    W = torch.randn(outputs, shape[-1], generator=draw).requires_grad_()
    b = torch.randn(outputs, generator=draw).requires_grad_() if bias else None
    inputs = [one for one in (X, W, b) if one is not None]
    doubles = [one.detach().double().requires_grad_() for one in inputs]
    exact = F.linear(*doubles)
    expected = [exact, *torch.autograd.grad(exact.sin().sum(), doubles)]
    for way in (products.OneDNNLinear.apply, F.linear):
        out = way(X, W, b)
        found = [out, *torch.autograd.grad(out.sin().sum(), inputs)]
        for one, other in zip(found, expected):
            assert (one.double() - other).norm() < 10 * products.ERROR * other.norm()


LAYOUTS = {
    "transposed": lambda *shape: torch.randn(shape[::-1]).mT,
    "expanded rows": lambda *shape: torch.randn(1, shape[1]).expand(shape),
    "expanded columns": lambda *shape: torch.randn(shape[0], 1).expand(shape),
    "one number": lambda *shape: torch.randn(()).expand(shape),
    "every second": lambda *shape: torch.randn(2 * shape[0], 2 * shape[1])[::2, ::2],
    "part": lambda *shape: torch.randn(shape[0] + 3, shape[1] + 3)[3:, 3:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["X", "W", "bias"])
def test_onednn_takes_any_layout(layout, which):
    torch.manual_seed(0)
    X, W, bias = torch.randn(40, 24), torch.randn(32, 24), torch.randn(32)
    X = LAYOUTS[layout](40, 24) if which == "X" else X
    W = LAYOUTS[layout](32, 24) if which == "W" else W
    bias = LAYOUTS[layout](32, 1)[:, 0] if which == "bias" else bias
    inputs = [one.detach().requires_grad_() for one in (X, W, bias)]
    doubles = [one.detach().double().requires_grad_() for one in inputs]
    found, expected = products.OneDNNLinear.apply(*inputs), F.linear(*doubles)
    close(found, expected.float(), rtol=1e-4, atol=1e-4)
    gradient = torch.randn(1, 32).expand(40, 32)
    gradients = torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, doubles, gradient.double())
    for ours, theirs in zip(*gradients):
        close(ours, theirs.float(), rtol=1e-4, atol=1e-4)


def test_onednn_can_be_differentiated_twice():
    X, W, b = torch.randn(40, 9), torch.randn(12, 9), torch.randn(12)
    results = []
    for way, dtype in ((products.OneDNNLinear.apply, torch.float32), (F.linear, torch.float64)):
        inputs = [one.to(dtype).requires_grad_() for one in (X, W, b)]
        first = torch.autograd.grad(way(*inputs).sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), inputs)
        results.append(torch.cat([one.flatten().double() for one in second]))
    close(results[0], results[1], rtol=1e-4, atol=1e-4 * results[1].abs().max().item())


def test_all_of_a_layer_goes_the_chosen_way(monkeypatch):
    """Subspaces, output map, both forms of ISTA and their gradients: with oneDNN chosen, no default product is left."""
    from opencrate import CrateConfig, CrateForImageClassification

    seen: list[str] = []

    def always(work, rule, ways, bound):
        seen.append(work)
        return "onednn" if work.startswith("product") else rule

    monkeypatch.setattr(products, "SMALL", 0)
    images, gradients = torch.randn(4, 3, 24, 24), {}
    for expansion in (1, 2):
        config = CrateConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=24,
            patch_size=4,
            dictionary_expansion=expansion,
            dictionary_decode="tied" if expansion > 1 else "none",
            ista_num_steps=expansion,
        )
        torch.manual_seed(0)
        model = CrateForImageClassification(config)
        for chosen in (None, always):
            with monkeypatch.context() as patch:
                if chosen:
                    patch.setattr(products, "choose", chosen)
                model.zero_grad()
                model(images).logits.square().sum().backward()
                gradients[chosen] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        close(gradients[always], gradients[None], rtol=1e-3, atol=1e-4 * gradients[None].abs().max().item())
    assert any("by columns" in work for work in seen) and any("by columns" not in work for work in seen)


@pytest.mark.parametrize("signed", [False, True])
def test_the_complete_step_in_half_types(signed):
    """Of its own type and under autocast: no less accurate than the published form of three products."""
    draw = torch.Generator().manual_seed(0)
    X, D = torch.randn(300, 64, generator=draw), torch.randn(64, 64, generator=draw) / 8
    D_half, X_half = D.bfloat16(), X.bfloat16()

    def published(X, D):
        step = 0.1 * (X @ D - (X @ D.mT) @ D) - (0 if signed else 0.01)
        return F.softshrink(X + step, 0.01) if signed else F.relu(X + step)

    def error(out, exact):
        return ((out.double() - exact).norm() / exact.norm()).item()

    exact = ista(X.double(), D.double(), 0.1, 0.1, 1, X.double(), signed)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = ista_complete(X, D, 0.1, 0.1, signed), published(X, D)
    assert ours.dtype == torch.float32 and error(ours, exact) < 1.05 * error(theirs, exact) < 2e-3
    exact = ista(X_half.double(), D_half.double(), 0.1, 0.1, 1, X_half.double(), signed)
    ours, theirs = ista_complete(X_half, D_half, 0.1, 0.1, signed), published(X_half, D_half)
    assert ours.dtype == torch.bfloat16 and error(ours, exact) < 1.05 * error(theirs, exact) < 5e-3
    given = ista_complete(X_half, D_half, 0.1, 0.1, signed, complete_ista_matrix(D_half, 0.1, identity=False))
    assert torch.equal(given, ours)


def test_what_is_fixed_is_taken():
    V = values_of(65, torch.float32)
    work = "attention with gradient, float32, 8 x 128 tokens of 8"
    for way, expected in (("products", attention.blocked_attention), ("sdpa", None)):
        with fixed({f"{work}, {torch.get_num_threads()} threads": way}):
            chosen = attention.attention_function("sdpa", V, False, True)
            assert chosen is expected or (expected is None and chosen is not attention.blocked_attention)
    assert attention.attention_function("eager", V, False, True) is attention.matmul_attention


@pytest.mark.parametrize("rows", [1, 3, 15, 16])
@pytest.mark.parametrize("outputs", [5, 8, 37])
@pytest.mark.parametrize("inputs", [12, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_of_few_rows_in_parts(rows, outputs, inputs, bias, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    X, W = torch.randn(rows, 1, inputs, generator=draw), torch.randn(outputs, inputs, generator=draw)
    b = torch.randn(outputs, generator=draw) if bias else None
    for name, value in (("LARGE", 0), ("WIDE", 12), ("SMALL", 2**30)):
        monkeypatch.setattr(products, name, value)
    taken = []
    real = products.in_parts
    monkeypatch.setattr(products, "in_parts", lambda *given: taken.append(given) or real(*given))
    with torch.no_grad():
        for weight in (W, W.mT.contiguous().mT):
            close(products.linear(X, weight, b), F.linear(X, W, b), rtol=1e-5, atol=1e-5)
        assert bool(taken) == (rows < 16 and outputs >= 8)
        assert products.linear(torch.zeros(0, inputs), W).shape == (0, outputs)
        half = products.linear(X.bfloat16(), W.bfloat16(), None if b is None else b.bfloat16())
        assert half.dtype == torch.bfloat16
        close(half.float(), F.linear(X, W, b), rtol=0.1, atol=0.1)
        flat = X.flatten(0, 1)
        close(products.plus_product(torch.ones(()), flat, W.mT, 0.5), 1 + 0.5 * flat @ W.mT, rtol=1e-5, atol=1e-5)
    taken.clear()
    products.linear(X.requires_grad_(), W).sum().backward()
    assert not taken  # training takes the library's product, whose gradients are fused
    close(X.grad, W.sum(0).expand_as(X), rtol=1e-5, atol=1e-5)
