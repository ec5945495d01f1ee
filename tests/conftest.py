"""For all tests: threads that wait give their core away, as the command line has it (before torch is imported)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
