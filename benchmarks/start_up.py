"""Start-up of `attar --help` against a bare typer application, alternating in one run.

python benchmarks/start_up.py [--repeats 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BARE = """
import typer
app = typer.Typer(add_completion=False)
@app.command()
def one(): pass
@app.command()
def two(): pass
app()
"""


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    commands = {
        "attar": [sys.executable, "-m", "attar", "--help"],
        "bare typer": [sys.executable, "-c", BARE, "--help"],
    }
    for command in commands.values():  # fill the disk cache
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(seconds(command))
    for name, values in times.items():
        print(f"{name:<12} median {statistics.median(values):.3f} s  (range {min(values):.3f} to {max(values):.3f})")
    difference = statistics.median(times["attar"]) - statistics.median(times["bare typer"])
    print(f"attar --help takes {difference:+.3f} s against bare typer (target: at most 0.3 s more, 1 s in all)")


if __name__ == "__main__":
    main()
