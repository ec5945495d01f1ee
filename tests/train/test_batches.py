"""The plan of batches: every image once a pass, pieces that join to the whole, resume in the middle."""

import numpy as np
import pytest

from attar.errors import RecipeError
from attar.train.batches import BatchPlan


def test_a_pass_uses_every_image_at_most_once_and_passes_differ():
    plan = BatchPlan(num_images=23, batch_size=5, epochs=2, seed=0)
    steps = [np.concatenate(parts) for parts in plan.steps(0)]
    assert len(steps) == plan.total_steps == 8
    first, second = np.concatenate(steps[:4]), np.concatenate(steps[4:])
    assert len(set(first)) == len(set(second)) == 20
    assert not np.array_equal(first, second)


def test_processes_and_parts_join_to_the_batch_of_one_process():
    whole = [np.concatenate(p) for p in BatchPlan(num_images=40, batch_size=8, epochs=1, seed=3).steps(0)]
    pieces = [
        list(BatchPlan(num_images=40, batch_size=8, epochs=1, seed=3, rank=r, world_size=2, accumulate=2).steps(0))
        for r in (0, 1)
    ]
    for step, batch in enumerate(whole):
        joined = np.concatenate([pieces[rank][step][part] for part in (0, 1) for rank in (0, 1)])
        assert np.array_equal(joined, batch)


@pytest.mark.parametrize("start", [0, 1, 4, 7])
def test_resuming_in_the_middle_continues_the_same_sequence(start):
    plan = BatchPlan(num_images=23, batch_size=5, epochs=2, seed=1)
    whole = [parts[0] for parts in plan.steps(0)]
    rest = [parts[0] for parts in plan.steps(start)]
    assert len(rest) == len(whole) - start
    assert all(np.array_equal(a, b) for a, b in zip(rest, whole[start:]))


def test_batches_that_do_not_fit_are_refused_with_what_would():
    with pytest.raises(RecipeError, match="batch_size=64 is larger than the data: 40 usable images.*--batch-size 16"):
        BatchPlan(num_images=40, batch_size=64, epochs=1, seed=0)
    with pytest.raises(RecipeError, match="use a multiple of 4"):
        BatchPlan(num_images=40, batch_size=10, epochs=1, seed=0, world_size=2, accumulate=2)


def test_a_pass_of_one_image_is_refused():
    with pytest.raises(RecipeError, match="batch_size=4 with accumulate=4 shows one image at a time"):
        BatchPlan(num_images=40, batch_size=4, epochs=1, seed=0, accumulate=4)
    with pytest.raises(RecipeError, match="one image at a time"):
        BatchPlan(num_images=40, batch_size=1, epochs=1, seed=0)
