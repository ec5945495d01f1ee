"""DeepCluster v2: memory by stable index, k-means once an epoch, fixed prototypes, resume without clustering."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError
from attar.losses import prototype_cross_entropy
from attar.methods.clustering import deep_cluster
from attar.methods.clustering.deep_cluster import spherical_kmeans
from tests.methods.conftest import assert_same_step


def slow_kmeans(rows, centroids, iterations):
    """k-means by cosine as a loop."""
    centroids = [c.clone() for c in centroids]
    nearest = lambda: [max(range(len(centroids)), key=lambda k: float(row @ centroids[k])) for row in rows]  # noqa: E731
    for _ in range(iterations):
        labels = nearest()
        for k in range(len(centroids)):
            members = [row for row, label in zip(rows, labels) if label == k]
            if members:
                centroids[k] = sum(members) / sum(members).norm()
    return torch.stack(centroids), torch.tensor(nearest())


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_kmeans_equals_the_loop_and_an_empty_cluster_keeps_its_centroid(iterations, monkeypatch):
    random = torch.Generator().manual_seed(0)
    rows = F.normalize(
        torch.randn(40, 5, dtype=torch.float64, generator=random) + torch.tensor([6.0, 0, 0, 0, 0]), dim=1
    )
    start = torch.cat([rows[:4], -rows[:1]])  # nobody is nearest to the last
    monkeypatch.setattr(deep_cluster, "_MOST_SCORES", 35)  # blocks of 7 rows
    centroids, nearest = spherical_kmeans(rows, start, iterations=iterations)
    expected, labels = slow_kmeans(rows, start, iterations)
    torch.testing.assert_close(centroids, expected)
    assert torch.equal(nearest, labels) and torch.equal(centroids[4], start[4])


def test_the_memory_is_filled_before_the_first_step_with_the_network_as_it_is(bench):
    bench = bench("deep_cluster")
    bench.method.eval()
    statistics = {k: v.clone() for k, v in bench.method.backbone.state_dict().items()}
    bench.method.step(bench.batch(0), bench.progress(0))
    memory = bench.method.memory
    assert memory.shape == (2, bench.images.num_ids, 12)
    known = memory[:, bench.images.index]
    torch.testing.assert_close(known.norm(dim=2), torch.ones(2, 12))
    assert memory.norm(dim=2).count_nonzero() == known.norm(dim=2).count_nonzero(), "ids without an image stay empty"
    assert (known[0] - known[1]).abs().max() > 1e-3, "two crops"
    for crops in bench.method._first_pass(memory.device):
        z = F.normalize(bench.method.encoder(crops.global_views[1]), dim=1)
        torch.testing.assert_close(z, memory[1, crops.index], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, statistics[k]) for k, v in bench.method.backbone.state_dict().items())


def test_filling_in_train_mode_moves_no_batch_statistics(bench):
    bench = bench("deep_cluster")
    before = {k: v.clone() for k, v in bench.method.state_dict().items() if "running" in k or "tracked" in k}
    bench.method._fill_memory()
    assert before and all(torch.equal(bench.method.state_dict()[k], v) for k, v in before.items())


def test_step_is_the_loss_of_all_crops_against_fixed_prototypes(bench):
    bench = bench("deep_cluster", num_local_views=2)
    method = bench.method.eval()
    batch = bench.batch(0)
    output = method.step(batch, bench.progress(0))
    crops = batch.global_views + batch.local_views
    assert [crop.shape[-1] for crop in crops] == [32, 32, 16, 16]
    labels = method.clusters[:, batch.index]
    assert (labels >= 0).all() and labels.max() < 3
    per_crop = [
        prototype_cross_entropy(method.projector(method.backbone(crop)), method.prototypes, labels, temperature=0.1)
        for crop in crops
    ]
    assert_same_step(method, output.loss, torch.stack(per_crop).mean())
    assert not any("prototypes" in name for name, _ in method.named_parameters())


def test_heads_take_turns_over_the_crops_and_differ(bench):
    method = bench("deep_cluster", num_heads=3).method
    seen = []
    original = deep_cluster.spherical_kmeans
    try:
        deep_cluster.spherical_kmeans = lambda rows, start, **kw: (
            seen.append((rows, start)) or original(rows, start, **kw)
        )
        method._begin_epoch(0)
    finally:
        deep_cluster.spherical_kmeans = original
    for (rows, _), crop in zip(seen, (0, 1, 0), strict=True):
        assert torch.equal(rows, method.memory[crop, method.ids])
    assert not torch.equal(seen[0][1], seen[2][1]), "another start for each head"
    torch.testing.assert_close(method.prototypes.norm(dim=2), torch.ones(3, 3))


def test_kmeans_starts_from_other_rows_in_every_epoch_and_from_the_same_in_the_same_epoch(bench, monkeypatch):
    method = bench("deep_cluster").method
    method.memory.copy_(
        F.normalize(torch.randn(method.memory.shape, generator=torch.Generator().manual_seed(0)), dim=2)
    )
    starts = []
    monkeypatch.setattr(
        deep_cluster,
        "spherical_kmeans",
        lambda rows, start, *, iterations: starts.append(start) or spherical_kmeans(rows, start, iterations=iterations),
    )
    for epoch in (0, 1, 0):
        method._cluster(epoch)
    first, other, again = (torch.stack(starts[i : i + 3]) for i in (0, 3, 6))  # of three heads
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a, b in zip(first, other)), "the memory is the same, the rows are others"


def test_embeddings_enter_the_memory_after_the_step_and_clusters_change_with_the_epoch(bench):
    bench = bench("deep_cluster")  # two steps an epoch
    clustered = []
    for step in range(4):
        before = bench.method.memory.clone()
        output = bench.backward(step)
        if step:
            assert torch.equal(bench.method.memory, before)
        before = bench.method.memory.clone()
        index = bench.batch(step).index
        bench.optimiser.step()
        bench.method.after_step(bench.progress(step))
        assert torch.equal(bench.method.memory[0, index], output.embeddings)
        assert torch.equal(bench.method.memory[1, index], output.positives)
        untouched = torch.ones(bench.images.num_ids, dtype=torch.bool)
        untouched[index] = False
        assert torch.equal(bench.method.memory[:, untouched], before[:, untouched])
        clustered.append(bench.method.prototypes.clone())
    assert torch.equal(clustered[0], clustered[1]) and torch.equal(clustered[2], clustered[3])
    assert not torch.equal(clustered[1], clustered[2])


def test_a_resumed_run_does_not_cluster_again_within_the_epoch(bench, monkeypatch):
    straight = bench("deep_cluster")
    straight.train(range(3))
    resumed = bench("deep_cluster")
    resumed.method.load_state_dict(straight.method.state_dict())
    monkeypatch.setattr(deep_cluster, "spherical_kmeans", lambda *a, **kw: pytest.fail("clustered again"))
    assert resumed.backward(3).loss == straight.backward(3).loss


def test_more_clusters_than_images_are_refused(bench):
    with pytest.raises(RecipeError, match="num_clusters=13 does not suit 12 images"):
        bench("deep_cluster", num_clusters=13)
