"""Several processes wait for the first one as long as it takes."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from attar.train.distributed import World
from tests.distributed_helper import run_two


def wait_longer_than_a_barrier(rank: int, store: str) -> None:
    dist.destroy_process_group()
    short = timedelta(seconds=2)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=short)
    world = World(rank, 2, torch.device("cpu"))

    def make(is_main: bool) -> str:
        if is_main:
            time.sleep(6)
        return "made" if is_main else "found"

    assert world.main_first(make) == ("made" if rank == 0 else "found")
    world.barrier()  # and the usual group is as it was


@pytest.mark.slow
def test_the_others_wait_for_what_the_first_makes_longer_than_a_barrier_does(tmp_path):
    run_two(wait_longer_than_a_barrier, str(tmp_path / "store"))
