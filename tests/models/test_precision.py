"""Mixed precision on a CPU: everything in bf16 but attention."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from attar.models.precision import mixed_precision

CPU = torch.device("cpu")


def tokens(count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, 5, 4, generator=generator).bfloat16().requires_grad_() for _ in range(count)]


def test_linear_layers_compute_in_bf16_and_without_it_in_float32():
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with mixed_precision(CPU, enabled=True):
        assert layer(x).dtype == torch.bfloat16
    with mixed_precision(CPU, enabled=False):
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_attention_and_its_gradient_are_those_of_float32_rounded_once(mask):
    q, k, v = tokens()
    bias = {
        None: None,
        "float": torch.linspace(-2, 2, 5).bfloat16().expand(5, 5),
        "bool": (torch.arange(5) < 3).expand(5, 5),
    }[mask]
    with mixed_precision(CPU, enabled=True):
        out = scaled_dot_product_attention(q, k, value=v, attn_mask=bias)
    out.float().square().sum().backward()

    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    scores = exact[0] @ exact[1].transpose(2, 3) / 2  # sqrt(4)
    if mask == "float":
        scores = scores + bias.float()
    if mask == "bool":
        scores = scores.masked_fill(~bias, -torch.inf)
    wanted = scores.softmax(dim=3) @ exact[2]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, wanted.bfloat16(), rtol=2**-8, atol=0)  # one rounding apart at most
    wanted.bfloat16().float().square().sum().backward()
    for given, x in zip((q, k, v), exact, strict=True):
        torch.testing.assert_close(given.grad.float(), x.grad, rtol=2**-6, atol=2**-9)


def test_the_backward_pass_of_attention_never_computes_in_bf16():
    """What it is for: that kernel is several times slower."""
    seen = []
    with mixed_precision(CPU, enabled=True):
        out = scaled_dot_product_attention(*tokens())
    node = out.grad_fn
    while node is not None and "Attention" not in node.name():
        node = node.next_functions[0][0]
    node.register_prehook(lambda gradients: seen.extend(g.dtype for g in gradients if g is not None))
    out.sum().backward()
    assert seen and set(seen) == {torch.float32}


def test_a_compiled_network_takes_it():
    attend = torch.compile(lambda q, k, v: scaled_dot_product_attention(q, k, v) * 2, backend="aot_eager")
    q, k, v = tokens()
    with mixed_precision(CPU, enabled=True):
        compiled, plain = attend(q, k, v), scaled_dot_product_attention(q, k, v) * 2
    torch.testing.assert_close(compiled, plain)
