"""Sizes of local views, and what is said where they do not fit."""

import pytest

from attar.errors import RecipeError
from attar.methods.base import resolve_recipe
from attar.methods.multi_crop import check_local_views, local_view_size


def test_local_views_are_whole_patches_near_what_was_asked():
    assert [local_view_size(32, share, patch_size=4) for share in (0.2, 0.25, 96 / 224, 0.5)] == [8, 8, 12, 16]
    assert [local_view_size(224, 96 / 224, patch_size=p) for p in (1, 8, 14, 16)] == [96, 96, 98, 96], "as published"
    assert [local_view_size(32, share) for share in (0.25, 0.5)] == [16, 16], "where nothing is known of patches"


@pytest.mark.parametrize(
    ("image_size", "share", "patch", "said", "unsaid"),
    [
        (16, 0.5, 1, "would have 16 px, as multiples of 16, .* ones have 16. Give larger images", "smaller|patch"),
        (32, 0.95, 4, "would have 32 px, and the global ones have 32. Give a smaller local_size", "multiples"),
        (32, 0.2, 16, "would be 6.4 px, and local views are multiples of 16 px: .* Give local_size=0.5", "patch"),
    ],
)
def test_what_is_wrong_with_local_views_is_true_and_the_advice_helps(image_size, share, patch, said, unsaid):
    recipe = resolve_recipe("dino", "small", {"num_local_views": 2, "local_size": share})
    with pytest.raises(RecipeError, match=said) as caught:
        check_local_views("dino", recipe, image_size, local_view_size(image_size, share, patch))
    assert not any(word in str(caught.value) for word in unsaid.split("|"))
