"""Time and memory of listing many image paths: python benchmarks/list_paths.py [N] [--flat]

Makes N empty files (default 1,000,000; 1,000 a folder, or all in one with --flat) in a temporary folder, lists them,
prints seconds and the growth of the peak resident memory, and removes them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIST = """
import resource, sys, time
from pathlib import Path
from attar.data.listing import list_folder
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
before, began = peak(), time.perf_counter()
listing = list_folder(Path(sys.argv[1]))
listing.digest()
seconds = time.perf_counter() - began
print(f"{len(listing.paths):,} paths: {seconds:.1f} s, peak memory {peak():.0f} MB, of it imports {before:.0f} MB")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--flat", action="store_true", help="all files in one folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        for i in range(given.number):
            folder = Path(root) / ("all" if given.flat else f"class_{i // 1000:05d}")
            if i % 1000 == 0:
                folder.mkdir(exist_ok=True)
            open(f"{folder}/image_{i:08d}.jpg", "w").close()
        print(f"made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        subprocess.run([sys.executable, "-c", LIST, root], check=True)


if __name__ == "__main__":
    main()
