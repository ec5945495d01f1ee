"""Attention in bf16 training on a CPU, forward and backward: computed in bf16, and in float32 as attar does.

    OMP_NUM_THREADS=1 python benchmarks/attention_cpu.py

Both sides alternate in the same run; medians of the CPU time of a thread. See attar/models/precision.py.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from attar.models.precision import mixed_precision

SHAPES = {  # images, heads, tokens, width of a head
    "vit_micro_p4, 32 px, batch 128": (128, 4, 65, 32),
    "I-JEPA's predictor there, four targets": (512, 4, 45, 24),
    "vit_small_p16, 224 px, batch 32": (32, 6, 197, 64),
}


def seconds(tokens: torch.Tensor, *, raised: bool) -> float:
    """CPU seconds of a forward and backward pass. tokens: (images, heads, tokens, width), bf16."""
    q, k, v = (tokens.clone().requires_grad_() for _ in range(3))
    began = time.process_time()
    with mixed_precision(tokens.device, enabled=raised):
        out = scaled_dot_product_attention(q, k, v)
    out.sum().backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, shape in SHAPES.items():
        tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        pairs = [(seconds(tokens, raised=False), seconds(tokens, raised=True)) for _ in range(rounds + 1)][1:]
        bf16, fp32 = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in pairs)
        print(
            f"{name:<40} bf16 {1e3 * bf16:6.0f} ms, float32 {1e3 * fp32:6.0f} ms, "
            f"ratio {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        )


if __name__ == "__main__":
    main()
