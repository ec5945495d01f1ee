"""`python -m attar`, and `torchrun -m attar` for several processes."""

from attar.cli import main

main()
