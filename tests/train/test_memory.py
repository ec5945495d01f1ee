"""Peak memory of a process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from attar.train.memory import peak_memory_of_process


def test_it_grows_with_what_is_held_and_stays_when_that_is_freed():
    before = peak_memory_of_process()
    held = np.ones(before + 50_000_000, dtype=np.uint8)
    during = peak_memory_of_process()
    assert during > before + 40_000_000
    del held
    assert peak_memory_of_process() > during - 10_000_000  # the system counts a few pages late


def test_a_process_does_not_begin_with_the_size_of_the_one_that_started_it():
    held = np.ones(300_000_000, dtype=np.uint8)  # beside which the process below is small
    said = "from attar.train.memory import peak_memory_of_process; print(peak_memory_of_process())"
    of_child = int(subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout)
    assert 1_000_000 < of_child < len(held)
