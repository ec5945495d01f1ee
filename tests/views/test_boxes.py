from __future__ import annotations

import torch
from torchvision.transforms import RandomResizedCrop

from attar.views.boxes import box_matrices, central_boxes, random_resized_boxes
from attar.views.draws import Draws


def test_boxes_are_whole_inside_and_follow_their_ranges():
    rectangles = torch.tensor([[3.0, 5.0, 60.0, 90.0]]).repeat(2_000, 1)
    boxes = random_resized_boxes(rectangles, Draws(0, torch.arange(2_000)), scale=(0.2, 0.9), ratio=(3 / 4, 4 / 3))
    top, left, height, width = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert (top >= 3).all() and (left >= 5).all()
    assert (top + height <= 63).all() and (left + width <= 95).all()
    share = height * width / (60 * 90)
    assert share.min() > 0.19 and share.max() < 0.92
    assert (width / height).min() > 0.72 and (width / height).max() < 1.38


def test_distribution_is_torchvisions():
    n, scale, ratio = 3_000, (0.08, 1.0), (3 / 4, 4 / 3)
    rectangles = torch.tensor([[0.0, 0.0, 50.0, 70.0]]).repeat(n, 1)
    ours = random_resized_boxes(rectangles, Draws(0, torch.arange(n)), scale=scale, ratio=ratio)
    torch.manual_seed(0)
    picture = torch.empty(1, 50, 70)
    theirs = torch.tensor([RandomResizedCrop.get_params(picture, scale, ratio) for _ in range(n)]).float()
    spread = theirs.std(dim=0) / n**0.5
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 5 * spread).all()
    torch.testing.assert_close(ours.std(dim=0), theirs.std(dim=0), rtol=0.06, atol=0)


def test_fallback_is_the_central_box_of_the_nearest_ratio():
    rectangles = torch.tensor([[0.0, 0.0, 4.0, 200.0], [0.0, 0.0, 300.0, 30.0], [0.0, 0.0, 1.0, 1.0]])
    draws = Draws(0, torch.arange(3))
    boxes = random_resized_boxes(rectangles, draws, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
    assert boxes.tolist() == [[0, 97, 4, 5], [130, 0, 40, 30], [0, 0, 1, 1]]


def test_central_box():
    boxes = central_boxes(torch.tensor([[0.0, 0.0, 30.0, 50.0], [2.0, 4.0, 40.0, 20.0]]), fraction=0.8)
    torch.testing.assert_close(boxes, torch.tensor([[3.0, 13.0, 24.0, 24.0], [14.0, 6.0, 16.0, 16.0]]))


def test_matrices_map_corners_to_corners():
    boxes, flip = torch.tensor([[2.0, 3.0, 10.0, 20.0]]).repeat(2, 1), torch.tensor([False, True])
    corners = torch.tensor([[0.0, 0.0, 1.0], [5.0, 5.0, 1.0]]).T
    plain, mirrored = box_matrices(boxes, 5, flip) @ corners
    assert plain[:2].T.tolist() == [[3, 2], [23, 12]]
    assert mirrored[:2].T.tolist() == [[23, 2], [3, 12]]
