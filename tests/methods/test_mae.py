"""MAE: what the backbone sees, what is predicted, and the published numbers."""

from __future__ import annotations

import pytest
import torch

from attar.errors import BackboneError, RecipeError
from attar.losses import masked_mse, normalise_patches
from attar.methods.base import Setup, resolve_recipe
from attar.methods.masked.mae import MAE, RECIPES, views
from attar.models.tokens import Tokens, embed, patchify, run_blocks
from tests.methods.conftest import assert_same_step


def test_step_is_the_loss_over_hidden_patches_written_without_indices(bench):
    bench = bench("mae", mask_ratio=0.6)
    method, batch = bench.method.eval(), bench.batch(0)
    assert batch.mask.shape == (6, 16) and (batch.mask.sum(1) == 10).all()
    target = normalise_patches(patchify(batch.images, 8))
    prediction = torch.zeros_like(target)
    for b in range(6):  # image by image: the paper's unshuffling is putting predictions back where they belong
        hidden, seen = batch.mask[b].nonzero().T, (~batch.mask[b]).nonzero().T
        prefix, patches = embed(method.backbone, batch.images[b : b + 1])
        encoded = run_blocks(method.backbone, Tokens(prefix, patches[:, seen[0]]))
        prediction[b, hidden[0]] = method.decoder(encoded, seen, hidden)[0]
    output = method.step(batch, bench.progress(0))
    assert_same_step(method, output.loss, masked_mse(prediction, target, batch.mask))
    assert output.embeddings.shape == (6, 128)


def test_hidden_pixels_reach_the_target_but_not_the_network(bench):
    bench = bench("mae", normalise_pixels=False)
    batch = bench.batch(0)
    seen = []
    bench.method.decoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    loss = bench.method(batch, bench.progress(0)).loss
    mask = batch.mask.view(6, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    batch.images = batch.images + 2.0 * mask
    moved = bench.method(batch, bench.progress(0)).loss
    assert all(torch.equal(a, b) for a, b in zip(*seen)) and seen[0].patches.shape == (6, 4, 128)
    assert abs(moved - loss) > 0.1
    batch.images = batch.images + 2.0 * ~mask
    bench.method(batch, bench.progress(0))
    assert not torch.equal(seen[2].patches, seen[0].patches)


def test_targets_are_normalised_by_setting(bench):
    """With normalised targets, contrast does not matter; the backbone sees the same here."""
    losses = {}
    for normalise in (True, False):
        built = bench("mae", normalise_pixels=normalise)
        batch = built.batch(0)
        with torch.no_grad():
            built.method.decoder.predict.weight.zero_()
        losses[normalise] = built.method(batch, built.progress(0)).loss
        hidden = patchify(batch.images, 8)[batch.mask]
        if not normalise:
            torch.testing.assert_close(losses[False], hidden.square().mean())
    assert losses[True].item() == pytest.approx(191 / 192, abs=1e-3)


def test_it_takes_vits_only_and_says_which(bench, backbone):
    built = bench("mae")
    with pytest.raises(BackboneError, match="mae masks the patches.*resnet8x0.5 is none.*vit_tiny_p4"):
        MAE(built.method.recipe, backbone(), Setup(image=built.setup.image, images=built.images))
    with pytest.raises(RecipeError, match="views of 32 px are not a whole number of patches of 5 px"):
        views(RECIPES["photo"], built.setup.image, 5)


def test_recipe_is_the_papers(bench):
    photo = resolve_recipe("mae")
    assert photo.peak_lr == pytest.approx(2.4e-3) and photo.adam_betas == (0.9, 0.95) and photo.weight_decay == 0.05
    assert (photo.decoder_dim, photo.decoder_depth, photo.decoder_heads) == (512, 8, 16) and photo.mask_ratio == 0.75
    maker = views(photo, bench("mae").setup.image, 4)
    assert maker.grid == 8 and maker.num_masked == 48
    assert maker.view.jitter is None and maker.view.scale == (0.2, 1.0) and maker.view.flip == 0.5
    assert maker.view.blur == maker.view.grey == maker.view.solarise == 0
