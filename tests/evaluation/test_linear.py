from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from attar.errors import AttarError
from attar.evaluation import linear
from attar.evaluation.linear import FALLBACK_PENALTY, Linear, Standardiser, fit_logistic, fit_sgd, linear_probe


def problem(n=60, dim=5, num_classes=3, seed=0, noise=1.5):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % num_classes
    centres = np.random.default_rng(7).normal(size=(num_classes, dim))
    return torch.from_numpy(centres[labels] + noise * rng.normal(size=(n, dim))), torch.from_numpy(labels)


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_weights_equal_scikit_learn(penalty):
    x, labels = problem()
    weight = fit_logistic(x, labels, num_classes=3, penalty=penalty, tolerance=1e-9)
    reference = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=1000).fit(x, labels)
    assert weight[:-1].T.numpy() == pytest.approx(reference.coef_, abs=1e-5)
    probabilities = (x @ weight[:-1] + weight[-1]).softmax(1).numpy()
    assert probabilities == pytest.approx(reference.predict_proba(x), abs=1e-5)


def test_two_classes_equal_scikit_learn_at_twice_the_penalty():
    """Two columns share the weight: |w/2|^2 + |-w/2|^2 is half of |w|^2."""
    x, labels = problem(num_classes=2)
    weight = fit_logistic(x, labels, num_classes=2, penalty=0.02, tolerance=1e-9)
    reference = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=1000).fit(x, labels)
    assert (weight[:-1, 1] - weight[:-1, 0]).numpy() == pytest.approx(reference.coef_[0], abs=1e-5)


def test_the_gradient_is_zero_at_the_solution():
    """Against autograd of the loss as the module's docstring states it."""
    x, labels = problem()
    weight = fit_logistic(x, labels, num_classes=3, penalty=0.1, tolerance=1e-9).requires_grad_()
    loss = (
        -(x @ weight[:-1] + weight[-1]).log_softmax(1)[range(len(x)), labels].mean() + 0.05 * weight[:-1].square().sum()
    )
    loss.backward()
    assert weight.grad.abs().max() < 1e-6


def test_float32_and_a_start_give_the_same_solution():
    x, labels = problem()
    exact = fit_logistic(x, labels, num_classes=3, penalty=0.1, tolerance=1e-9)
    coarse = fit_logistic(x.float(), labels, num_classes=3, penalty=0.1, tolerance=1e-6)
    assert coarse.double().numpy() == pytest.approx(exact.numpy(), abs=1e-3)
    start = torch.randn(exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    warm = fit_logistic(x, labels, num_classes=3, penalty=0.1, start=start, tolerance=1e-9)
    warm[-1] -= warm[-1].mean() - exact[-1].mean()  # a shift common to all classes changes nothing
    assert warm.numpy() == pytest.approx(exact.numpy(), abs=1e-5)


def test_sgd_reaches_the_solution_for_every_penalty():
    x, labels = problem()
    weights = fit_sgd(x, labels, num_classes=3, penalties=[1.0, 0.1], epochs=150, batch_size=60, seed=0)
    for weight, penalty in zip(weights, [1.0, 0.1]):
        exact = fit_logistic(x, labels, num_classes=3, penalty=penalty, tolerance=1e-9)
        assert weight.numpy() == pytest.approx(exact.numpy(), abs=2e-3)


def test_standardised_features_have_unit_variance_and_constants_vanish():
    x, _ = problem()
    x = torch.cat([100 + 7 * x, torch.full((len(x), 1), 3.3, dtype=x.dtype)], dim=1)
    z = Standardiser.of(x)(x)
    assert z.mean(0).abs().max() < 1e-9
    assert z[:, :-1].std(0, unbiased=False).numpy() == pytest.approx(1)
    assert (Standardiser.of(x.float())(x.float())[:, -1] == 0).all()


def test_scale_and_shift_of_features_do_not_matter():
    x, labels = problem()
    a = linear_probe(x, labels, num_classes=3).scores(x)
    b = linear_probe(1000 + 50 * x, labels, num_classes=3).scores(1000 + 50 * x)
    assert a == pytest.approx(b, abs=1e-5)


def test_fewer_images_than_features_is_solved_exactly_in_their_span():
    x, labels = problem(n=12, dim=40)
    probe = linear_probe(x, labels, num_classes=3, penalties=[0.1])
    z = Standardiser.of(x)(x)
    whole = fit_logistic(z, labels, num_classes=3, penalty=0.1, tolerance=1e-9)
    assert probe.weight.numpy() == pytest.approx(whole[:-1].numpy(), abs=1e-3)


def test_separable_is_perfect_and_random_is_chance(make_subject, clusters):
    (train, labels), (test, test_labels) = clusters(90), clusters(60, seed=1)
    assert (Linear().run(make_subject(train, labels, test, test_labels))[0].scores[0].argmax(1) == test_labels).all()
    rng = np.random.default_rng(0)
    noise, noise_test = rng.normal(size=(200, 8)), rng.normal(size=(600, 8))
    labels, test_labels = rng.integers(3, size=200), rng.integers(3, size=600)
    right = Linear().run(make_subject(noise, labels, noise_test, test_labels))[0].scores[0].argmax(1) == test_labels
    assert abs(right.mean() - 1 / 3) < 4 * (2 / 9 / 600) ** 0.5


def test_the_penalty_fits_the_problem():
    """Pure noise wants the strongest penalty; clean classes do not."""
    x, labels = problem(n=300, noise=0.1)
    assert linear_probe(x, labels, num_classes=3).penalty < 0.1
    noise = torch.randn(300, 30, generator=torch.Generator().manual_seed(0))
    assert linear_probe(noise, labels, num_classes=3).penalty >= 1


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_test_labels_do_not_change_the_fit(make_subject, solver):
    (train, labels), (test, test_labels) = problem(seed=1), problem(seed=2)
    fit = lambda y: Linear(solver=solver).run(make_subject(train, labels, test, y))[0]  # noqa: E731
    first, second = fit(test_labels), fit(test_labels.flip(0))
    assert (first.scores[0] == second.scores[0]).all()
    assert first.settings == second.settings
    assert first.settings["solver"] == solver


def test_a_class_with_one_image_takes_the_fallback():
    x, labels = problem(n=4, num_classes=3)
    assert linear_probe(x, labels, num_classes=3).penalty == FALLBACK_PENALTY
    assert linear_probe(x, labels, num_classes=3, penalties=[5.0]).penalty == 5.0


def test_large_sets_take_sgd(monkeypatch):
    x, labels = problem()
    assert linear_probe(x, labels, num_classes=3).solver == "lbfgs"
    monkeypatch.setattr(linear, "LBFGS_VALUES", 10)
    assert linear_probe(x, labels, num_classes=3).solver == "sgd"


@pytest.mark.parametrize(("most", "inside"), [(10**6, 1), (100, 2)])
def test_small_problems_take_one_thread_and_give_the_others_back(monkeypatch, most, inside):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(linear, "ONE_THREAD_VALUES", most)
    fit = fit_logistic
    monkeypatch.setattr(linear, "fit_logistic", lambda *a, **k: seen.append(torch.get_num_threads()) or fit(*a, **k))
    torch.set_num_threads(2)
    try:
        linear_probe(*problem(), num_classes=3)
        assert set(seen) == {inside}
        monkeypatch.setattr(linear, "_choose_by_lbfgs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            linear_probe(*problem(), num_classes=3)
        assert torch.get_num_threads() == 2, "also after an error"
    finally:
        torch.set_num_threads(before)


def test_errors_name_what_is_accepted():
    x, labels = problem()
    with pytest.raises(AttarError, match="solver 'newton' is unknown; accepted: auto, lbfgs, sgd"):
        linear_probe(x, labels, num_classes=3, solver="newton")
    with pytest.raises(AttarError, match=r"penalties=\(0.0,\) is not accepted"):
        linear_probe(x, labels, num_classes=3, penalties=[0.0])
