"""What a training needed of the machine's memory."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_of_process() -> int:
    """The largest resident size of this process so far, in bytes; 0 where the system does not say.

    Linux says it in /proc; its ru_maxrss would begin with the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        sizes = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if sizes:  # some containers leave it out
            return int(sizes[0][1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
