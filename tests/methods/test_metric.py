"""Metric learning: the loss that was chosen, on what it is compared, and settings that would be ignored."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from attar import losses
from attar.errors import MissingDependency, RecipeError
from attar.methods.metric.metric import PROXY_LOSSES, RECIPES

HAVE_PACKAGE = importlib.util.find_spec("pytorch_metric_learning") is not None
OURS = ("contrastive_pair", "triplet", "n_pair", "center")


def embedded(built, batch):
    """Features, embedding and labels in eval mode."""
    features = built.method.backbone(batch.images)
    return features, features if built.method.projector is None else built.method.projector(features), batch.labels


@pytest.mark.parametrize("projector_dim", [None, 12])
@pytest.mark.parametrize("loss", OURS)
def test_step_is_the_loss_on_the_embedding(bench, loss, projector_dim):
    built = bench("metric", loss=loss, projector_dim=projector_dim)
    batch = built.batch(0)
    built.method.eval()
    output = built.method.step(batch, built.progress(0))
    features, z, labels = embedded(built, batch)
    unit = F.normalize(z, dim=1)
    i, j, same = losses.all_pairs(labels)
    ((a, p),) = losses.class_pairs(labels)
    anchor, positive, negative = losses.mined_triplets(unit, labels, mining="semihard")
    expected = {
        "contrastive_pair": lambda: losses.contrastive_pair(unit[i], unit[j], same, margin=1.0),
        "triplet": lambda: losses.triplet(unit[anchor], unit[positive], unit[negative], margin=0.2),
        "n_pair": lambda: losses.n_pair(z[a], z[p], norm_weight=0.002),
        "center": lambda: (
            F.cross_entropy(built.method.classifier(features), labels)
            + 0.003 * losses.center(z, labels, built.method.centres)
        ),
    }[loss]()
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(output.embeddings, z)


@pytest.mark.parametrize("loss", ("contrastive_pair", "triplet", "n_pair"))
def test_classes_come_apart(bench, loss):
    """A smoke test, no proof of the loss."""
    built = bench("metric", loss=loss)
    built.total_steps = 40
    first = [built.backward(step).loss.item() for step in range(2)]
    built.train(range(40))
    last = [built.backward(step).loss.item() for step in range(2)]
    assert sum(last) < 0.8 * sum(first)


def test_centres_follow_their_classes_and_are_saved(bench):
    """Half way in every step: a dozen steps are enough for centres to lie where their images do."""
    built = bench("metric", loss="center")
    built.optimiser.param_groups[0]["lr"] = 0.0
    built.train(range(20))
    z, labels = built.method.step(built.batch(0), built.progress(0)).embeddings, built.batch(0).labels
    means = torch.stack([z[labels == c].mean(dim=0) for c in labels.unique()])
    distance = (means - built.method.centres[labels.unique()]).norm(dim=1)
    assert (distance < 0.5 * means.norm(dim=1)).all() and "centres" in built.method.state_dict()


def test_accumulated_batches_move_the_centres_together(bench):
    built = bench("metric", loss="center")
    before = built.method.centres.clone()
    with torch.no_grad():
        seen = [built.method.step(built.batch(i), built.progress(0)).embeddings for i in range(2)]
    built.method.after_step(built.progress(0))
    labels = torch.cat([built.batch(i).labels for i in range(2)])
    moved = 0.5 * losses.center_steps(torch.cat(seen), labels, before)
    torch.testing.assert_close(built.method.centres, before + moved)
    assert not built.method._seen


def test_settings_that_would_be_ignored_are_errors(bench):
    with pytest.raises(RecipeError, match="margin would be ignored: loss is 'n_pair'"):
        bench("metric", loss="n_pair", margin=0.5)
    with pytest.raises(RecipeError, match="mining would be ignored: loss is 'center'"):
        bench("metric", loss="center", mining="hard")
    with pytest.raises(RecipeError, match="margin=-1"):
        bench("metric", margin=-1.0)


@pytest.mark.parametrize("loss", PROXY_LOSSES)
def test_losses_of_the_package(bench, loss):
    """Shapes and training only: the values are the package's."""
    pytest.importorskip("pytorch_metric_learning")
    built = bench("metric", loss=loss)
    before = {k: v.clone() for k, v in built.method.proxies.state_dict().items()}
    built.train(range(2))
    after = built.method.proxies.state_dict()
    assert any(not torch.equal(after[k], v) for k, v in before.items()), "proxies are trained"
    assert any(key.startswith("proxies.") for key in built.method.state_dict()), "and saved"


@pytest.mark.skipif(HAVE_PACKAGE, reason="it is installed")
def test_without_the_package_the_error_says_what_to_install(bench):
    with pytest.raises(MissingDependency, match=r"attar\[metric\].*n_pair and center"):
        bench("metric", loss="arcface")


def test_every_loss_has_a_recipe():
    assert {r.loss for r in RECIPES.values()} == {*OURS, *PROXY_LOSSES}
