"""Peak extra memory of NT-Xent: blocks of logits against the whole matrix, value and gradient compared.

    python benchmarks/nt_xent_memory.py                      # on a GPU, otherwise on the CPU
    python benchmarks/nt_xent_memory.py --batch-size 2048 --device cpu

On the CPU each form runs in a process of its own (peak resident memory cannot be reset), at a smaller batch by default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch

from attar.losses import nt_xent
from attar.train.memory import peak_memory_of_process

TEMPERATURE = 0.1
WIDTH = 128


def measure(batch_size: int, device: str, form: str) -> dict[str, float]:
    """Forward and backward once; peak memory beyond the inputs, in MiB."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, batch_size, WIDTH, generator=generator).to(device).requires_grad_()
    whole = 2 * batch_size if form == "whole" else None
    nt_xent(z[0, :8], z[1, :8], temperature=TEMPERATURE).backward()  # libraries load, workspaces are allocated
    z.grad = torch.zeros_like(z)
    before = _memory_now(device)
    began = time.perf_counter()
    loss = nt_xent(z[0], z[1], temperature=TEMPERATURE, chunk_size=whole)
    loss.backward()
    value = loss.item()
    seconds = time.perf_counter() - began
    return {
        "loss": value,
        "gradient_norm": z.grad.double().norm().item(),
        "extra_mib": (_peak_memory(device) - before) / 2**20,
        "seconds": seconds,
    }


def _memory_now(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return peak_memory_of_process()


def _peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_memory_of_process()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, help="images; default 16384 on a GPU, 4096 on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--form", choices=["blocks", "whole"], help="measure one form in this process, print JSON")
    arguments = parser.parse_args()
    batch_size = arguments.batch_size or (16384 if arguments.device == "cuda" else 4096)
    if arguments.form:
        print(json.dumps(measure(batch_size, arguments.device, arguments.form)))
        return
    hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"NT-Xent, batch {batch_size}, E = {WIDTH}, float32, {hardware}, torch {torch.__version__}")
    results = {}
    for form in ("whole", "blocks"):
        command = [sys.executable, __file__, "--batch-size", str(batch_size), "--device", arguments.device]
        output = subprocess.run([*command, "--form", form], check=True, capture_output=True, text=True).stdout
        results[form] = json.loads(output)
        r = results[form]
        print(
            f"{form:>6}: extra {r['extra_mib']:9.1f} MiB   {r['seconds']:6.3f} s   "
            f"loss {r['loss']:.6f}   |gradient| {r['gradient_norm']:.6e}"
        )
    ratio = results["whole"]["extra_mib"] / max(results["blocks"]["extra_mib"], 1e-9)
    print(f"ratio: {ratio:.1f} (to reach: 8)")


if __name__ == "__main__":
    main()
