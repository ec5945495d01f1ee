"""The memory bank against its formula; ids with gaps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError, ShapeError
from attar.models.memory_bank import MemoryBank

IDS = np.array([8, 2, 5, 11])  # any order, with gaps


@pytest.fixture
def bank():
    return MemoryBank(IDS, 3, momentum=0.5, seed=1)


def test_it_starts_with_unit_rows_of_its_seed_and_is_saved(bank):
    assert bank.rows.shape == (12, 3) and len(bank) == 4
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(12))
    assert torch.equal(bank.rows, MemoryBank(IDS, 3, momentum=0.5, seed=1).rows)
    assert not torch.equal(bank.rows, MemoryBank(IDS, 3, momentum=0.5, seed=2).rows)
    assert set(bank.state_dict()) == {"rows", "partition"} and float(bank.partition) == 0


def test_an_update_is_the_momentum_average_of_unit_vectors_and_moves_nothing_else(bank):
    before = bank.rows.clone()
    index = torch.tensor([11, 2])
    embeddings = torch.tensor([[3.0, 0, 0], [0, 0.1, 0]], requires_grad=True)
    bank.update(index, embeddings)
    expected = F.normalize(0.5 * before[index] + 0.5 * F.normalize(embeddings, dim=1), dim=1)
    torch.testing.assert_close(bank.rows[index], expected.detach())
    others = [i for i in range(12) if i not in (11, 2)]
    assert torch.equal(bank.rows[others], before[others]) and not bank.rows.requires_grad


@pytest.mark.parametrize("momentum, weight", [(0.5, 0.5), (0.0, 0.0), (0.9, 0.9)])
def test_known_updates(momentum, weight):
    bank = MemoryBank(np.arange(2), 2, momentum=momentum)
    bank.rows.copy_(torch.eye(2))
    bank.update(torch.tensor([0, 1]), 7 * torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert torch.equal(bank.rows[0], torch.tensor([1.0, 0.0]))  # v = M changes nothing
    expected = F.normalize(torch.tensor([1 - weight, weight]), dim=0)  # momentum 0.5: (M + v) / sqrt(2)
    torch.testing.assert_close(bank.rows[1], expected)


def test_positions_find_ids_among_the_rows_of_images(bank):
    index = torch.tensor([11, 2, 8, 5])
    assert torch.equal(bank.rows[bank.ids][bank.positions(index)], bank.rows[index])


def test_negatives_are_rows_of_images_drawn_uniformly_and_equal_at_equal_steps(bank):
    bank.rows.copy_(torch.arange(12.0)[:, None].expand(12, 3))
    drawn = bank.draw(4000, step=3)[:, 0]
    numbers = {i: int((drawn == i).sum()) for i in range(12)}
    assert sum(numbers[i] for i in IDS.tolist()) == 4000, "a gap was drawn"
    assert all(800 < numbers[i] < 1200 for i in IDS.tolist())
    assert torch.equal(drawn, bank.draw(4000, step=3)[:, 0]) and not torch.equal(drawn, bank.draw(4000, step=4)[:, 0])


def test_what_does_not_fit_is_refused(bank):
    with pytest.raises(ShapeError, match=r"2 ids need \(2, 3\)"):
        bank.update(torch.tensor([2, 5]), torch.ones(2, 4))
    with pytest.raises(RecipeError, match="bank_momentum=1"):
        MemoryBank(IDS, 3, momentum=1.0)
