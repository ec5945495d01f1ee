"""Jigsaw and Jigsaw++: the table, the puzzle and its solution, tiles of another image."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from attar.data.images import ImageSpec
from attar.errors import BackboneError, RecipeError
from attar.methods.base import resolve_recipe
from attar.methods.pretext.jigsaw import RECIPES, Jigsaw, views, with_foreign
from attar.views.batches import Tiles
from attar.views.draws import Draws
from attar.views.permutations import hamming_distances, spread_permutations
from tests.distributed_helper import run_two

PHOTO = ImageSpec(size=224, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_the_recipes_are_the_papers():
    photo, harder = RECIPES["photo"], RECIPES["jigsaw_plus_plus"]
    assert (photo.num_permutations, photo.grey, photo.max_foreign, photo.channel_shift) == (1000, 0.3, 0, 2)
    assert (harder.num_permutations, harder.grey, harder.max_foreign) == (701, 0.7, 2)
    assert (photo.projector_dim, photo.projector_hidden_dim, photo.dropout) == (512, 4096, 0.5)
    assert photo.peak_lr == pytest.approx(0.01) and photo.batch_size == 256
    made = views(photo, PHOTO)
    assert (made.view.view_size, made.side, made.grid, made.normalise) == (255, 64, 3, True)
    assert made.view.flip == 0 and made.view.ratio == (1, 1) and made.view.scale == (1, 1)


@pytest.mark.parametrize("number, least, mean", [(9, 9, 9.0), (100, 6, 8.08), (701, 5, 8.01), (1000, 5, 8.008)])
def test_permutations_are_far_apart_and_always_the_same(number, least, mean):
    table = spread_permutations(9, number)
    assert torch.equal(table.sort(dim=1).values, torch.arange(9).expand(number, 9))
    distances = hamming_distances(table)
    apart = distances[~torch.eye(number, dtype=torch.bool)]
    assert apart.min() == least and apart.float().mean().item() == pytest.approx(mean, abs=0.005)
    spread_permutations.cache_clear()
    assert torch.equal(spread_permutations(9, number), table)
    assert torch.equal(spread_permutations(9, 9), table[:9])


def test_each_permutation_is_the_best_of_all_that_are_left():
    """The greedy rule, by a slow loop over the 24 permutations of four tiles."""
    import itertools

    table = [tuple(row) for row in spread_permutations(4, 24).tolist()]
    differs = lambda a, b: sum(x != y for x, y in zip(a, b))  # noqa: E731

    def merit(candidate, chosen):
        return min(differs(candidate, c) for c in chosen), sum(differs(candidate, c) for c in chosen)

    for n in range(1, 24):
        left = [p for p in itertools.permutations(range(4)) if p not in table[:n]]
        assert merit(table[n], table[:n]) == max(merit(p, table[:n]) for p in left)
    assert len(set(table)) == 24


def test_a_zero_head_gives_log_of_the_number_of_permutations(bench):
    bench = bench("jigsaw", "small_plus_plus")
    for parameter in bench.method.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert bench.backward(0).loss.item() == pytest.approx(math.log(100), abs=1e-5)


@pytest.mark.parametrize("recipe", ["small", "small_plus_plus"])
def test_the_inverse_order_restores_the_tiles_bit_for_bit(bench, recipe):
    bench = bench("jigsaw", recipe)
    batch, method = bench.batch(0), bench.method
    tiles = with_foreign(batch)
    shown = method.shown(tiles, batch.pretext_targets)
    assert not torch.equal(shown, tiles)
    for b in range(6):
        for i, place in enumerate(method.permutations[batch.pretext_targets[b]].tolist()):
            assert torch.equal(shown[b, i], tiles[b, place])
    assert torch.equal(method.solved(shown, batch.pretext_targets), tiles)


def test_the_step_reads_tiles_one_by_one_and_joins_them_as_shown(bench):
    bench = bench("jigsaw", "small_plus_plus", max_foreign=0)
    method, batch = bench.method.eval(), bench.batch(0)
    shown = method.shown(batch.tiles, batch.pretext_targets)
    features = [method.backbone(shown[:, i]) for i in range(9)]
    logits = method.head(torch.cat([method.tile_head(h) for h in features], dim=1))
    output = method.step(batch, bench.progress(0))
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, batch.pretext_targets), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.embeddings, torch.stack(features).mean(dim=0).detach(), rtol=1e-4, atol=1e-5)
    assert output.metrics["puzzle_accuracy"] == (logits.argmax(1) == batch.pretext_targets).float().mean()


def hand_made(num_foreign, index=None) -> Tiles:
    """Four images; the one pixel of tile t of image b is 10 b + t."""
    tiles = (10.0 * torch.arange(4)[:, None] + torch.arange(9)).view(4, 9, 1, 1, 1)
    offered = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    replaced = torch.tensor([[8, 0], [7, 1], [6, 2], [5, 3]])
    index = torch.arange(4) if index is None else index
    return Tiles(tiles, torch.zeros(4).long(), offered, replaced, torch.tensor(num_foreign), index)


def test_foreign_tiles_come_from_the_next_image_to_the_drawn_places():
    batch = hand_made([0, 1, 2, 2])
    mixed = with_foreign(batch).flatten(1)
    expected = batch.tiles.flatten(1).clone()
    expected[1, 7] = 24  # first offer of image 2 at the first place
    expected[2, 6], expected[2, 2] = 36, 37
    expected[3, 5], expected[3, 3] = 0, 1  # the last takes from the first
    assert torch.equal(mixed, expected)
    assert torch.equal(batch.tiles.flatten(1)[1], torch.arange(10.0, 19))  # the batch itself is as before


def half_of_hand_made(rank: int) -> None:
    whole = hand_made([2, 1, 2, 2])
    half = slice(2 * rank, 2 * rank + 2)
    own = Tiles(**{f.name: getattr(whole, f.name)[half] for f in fields(Tiles) if f.name != "labels"})
    assert torch.equal(with_foreign(own), with_foreign(whole, over_processes=False)[half])


@pytest.mark.slow
def test_two_processes_exchange_the_tiles_that_one_would():
    run_two(half_of_hand_made)


def test_no_image_takes_tiles_from_itself():
    batch = hand_made([2, 2, 2, 2], index=torch.tensor([5, 5, 6, 7]))
    changed = (with_foreign(batch) != batch.tiles).flatten(1).sum(dim=1)
    assert changed.tolist() == [0, 2, 2, 2]


def test_what_is_drawn_for_foreign_tiles(bench):
    made = bench("jigsaw", "small_plus_plus").make_views
    canvases = bench("jigsaw").images.batch(torch.arange(12).numpy())
    batches = [made(canvases, Draws(0, canvases.index, epoch=epoch)) for epoch in range(20)]
    num_foreign, offered, replaced, targets = (
        torch.cat([getattr(b, name) for b in batches])
        for name in ("num_foreign", "offered", "replaced", "pretext_targets")
    )
    assert num_foreign.bincount().min() > 240 / 3 * 0.7 and num_foreign.max() == 2
    assert (offered[:, 0] != offered[:, 1]).all() and (replaced[:, 0] != replaced[:, 1]).all()
    assert offered.unique().tolist() == list(range(9)) == replaced.unique().tolist()
    assert targets.min() >= 0 and targets.max() < 100 and len(targets.unique()) > 80
    assert bench("jigsaw").batch(0).offered.shape == (6, 0)


@pytest.mark.parametrize("gap", [1.0, 1.5])
def test_a_gap_that_leaves_no_tile_is_refused(bench, gap):
    with pytest.raises(
        RecipeError, match=f"jigsaw: gap={gap} is not accepted; give a share of a cell from 0 to below 1"
    ):
        bench("jigsaw", gap=gap)


def test_two_permutations_that_foreign_tiles_could_confuse_are_refused(bench):
    with pytest.raises(RecipeError, match="differ in 2 at least"):
        bench("jigsaw", max_foreign=2)
    bench("jigsaw", max_foreign=1)
    with pytest.raises(RecipeError, match="24 permutations"):
        bench("jigsaw", num_permutations=25)


def test_the_table_is_saved_with_the_method_and_used(bench):
    bench = bench("jigsaw", "small_plus_plus")
    assert torch.equal(bench.method.state_dict()["permutations"], spread_permutations(9, 100))
    state = bench.method.state_dict() | {"permutations": bench.method.permutations.flip(0)}
    bench.method.load_state_dict(state)
    batch = bench.batch(0)
    restored = bench.method.solved(bench.method.shown(batch.tiles, batch.pretext_targets), batch.pretext_targets)
    assert torch.equal(restored, batch.tiles)
    assert torch.equal(spread_permutations(9, 100)[0], bench.method.permutations[-1])  # the shared table is untouched


def test_a_network_for_larger_pictures_is_refused_with_the_setting_to_change(bench, backbone):
    with pytest.raises(BackboneError, match=r"12 x 12 pixels; use another tile_scale"):
        Jigsaw(resolve_recipe("jigsaw", "small"), backbone(name="vit_micro_p8"), bench("jigsaw").setup)


def test_the_answer_is_the_puzzle_its_solution_and_the_image(bench):
    bench = bench("jigsaw", "small_plus_plus", num_permutations=9)
    method, batch = bench.method.eval(), bench.batch(0)
    method.head[-1].weight.data.zero_()
    method.head[-1].bias.data = torch.eye(9)[3] * 20  # always number 3
    batch.pretext_targets[:] = torch.tensor([3, 3, 0, 1, 2, 4])
    batch.num_foreign[:] = 0
    with torch.no_grad():
        answers = method.answers(batch)
    assert list(answers.pictures()) == ["puzzle", "solved", "image"] and answers.index is batch.index
    assert answers.captions["solved"] == ["9 of 9 (100%)"] * 2 + ["0 of 9 (100%)"] * 4  # nine that share no place
    puzzle, solved, image = answers.pictures().values()
    same = lambda a, b: (a == b).flatten(1).all(dim=1).tolist()  # noqa: E731
    assert same(solved, image) == [True, True] + [False] * 4 and not any(same(puzzle, image))
