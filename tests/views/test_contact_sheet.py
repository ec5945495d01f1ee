from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.errors import ShapeError
from attar.methods.base import Answers
from attar.views.augmentation import Augmentation, CentreView
from attar.views.contact_sheet import CELL, GAP, LEFT, LINE, TOP, contact_sheet
from attar.views.draws import Draws
from attar.views.makers import MakeMultiCrop, MakeOneView, MakeTwoViews


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_size_is_rows_times_columns(make_batch, make_spec, channels):
    batch, spec = make_batch(channels=channels), make_spec(channels=channels, normalise=True)
    augment = Augmentation(spec, jitter=None)
    local = Augmentation(spec, size=16, jitter=None)
    made = MakeMultiCrop(global_views=[augment] * 2, local_views=[local])(batch, Draws(0, batch.index))
    sheet = contact_sheet(made, spec, num_images=4)
    assert sheet.mode == "RGB" and sheet.size == (LEFT + 3 * (CELL + GAP), TOP + 4 * (CELL + GAP))
    assert contact_sheet(made, spec, num_images=50).size[1] == TOP + 6 * (CELL + GAP)


def test_pictures_are_shown_without_normalisation(make_batch, make_spec):
    batch, spec = make_batch(2, canvas=CELL), make_spec(CELL, normalise=True)
    sheet = np.asarray(contact_sheet(MakeOneView(CentreView(spec))(batch, Draws(0, batch.index)), spec))
    top = TOP + CELL + GAP  # second image
    shown = torch.from_numpy(sheet[top : top + CELL, LEFT : LEFT + CELL].copy()).permute(2, 0, 1)
    assert (shown.int() - batch.canvases[1].int()).abs().max() <= 1


def test_what_does_not_fit_is_named(make_batch, make_spec):
    batch = make_batch()
    made = MakeTwoViews(CentreView(make_spec()))(batch, Draws(0, batch.index))
    with pytest.raises(ShapeError, match="has 1 channels"):
        contact_sheet(made, make_spec(channels=1))
    with pytest.raises(ShapeError, match="num_images >= 1"):
        contact_sheet(made, make_spec(), num_images=0)


def test_captions_stand_below_the_pictures_of_their_column(make_batch, make_spec):
    batch, spec = make_batch(2), make_spec()
    shown = {"asked": CentreView(spec)(batch), "true": CentreView(spec)(batch)}
    sheets = [
        np.asarray(contact_sheet(Answers(shown, {"asked": said}, batch.index), spec))
        for said in (["", ""], ["90°", ""])
    ]
    assert len(sheets[0]) == TOP + 2 * (CELL + GAP + LINE)
    changed = np.argwhere((sheets[0] != sheets[1]).any(axis=2))
    assert len(changed) and changed[:, 0].min() >= TOP + CELL and changed[:, 0].max() < TOP + CELL + LINE
    assert changed[:, 1].max() < LEFT + CELL + GAP
