"""Training on a CPU by what its waiting threads do, alone and beside other programs that keep cores busy.

python benchmarks/waiting_threads.py [--busy 0 1 2 3] [--rounds 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

TRAINING = """
import tempfile
import numpy as np
import attar
images = np.random.default_rng(0).integers(0, 256, (512, 48, 48), np.uint8)
with tempfile.TemporaryDirectory() as folder:
    options = {"epochs": 1, "batch_size": 64, "image_size": 48, "progress": False}
    run = attar.pretrain(images, out=folder + "/run", method="simclr", backbone="stages_resnet18", **options)
    print(run.fit.images_per_second)
"""
POLICIES = {
    "as attar's commands": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "the runtime's own": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def images_per_second(policy: dict[str, str]) -> float:
    others = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in others} | {"THP_MEM_ALLOC_ENABLE": "1"} | policy
    done = subprocess.run([sys.executable, "-c", TRAINING], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 3], help="other programs, each on one core")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores; images a second, median (range), and over one thread")
    for busy in given.busy:
        programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        found: dict[str, list[float]] = {name: [] for name in POLICIES}
        try:
            for _ in range(given.rounds):
                for name, policy in POLICIES.items():
                    found[name].append(images_per_second(policy))
        finally:
            for program in programs:
                program.kill()
        for name, rates in found.items():
            middle = statistics.median(rates)
            ratio = middle / statistics.median(found["one thread"])
            print(f"{busy} busy  {name:<20} {middle:6.1f} ({min(rates):.1f} to {max(rates):.1f})  {ratio:.2f} x")


if __name__ == "__main__":
    main()
