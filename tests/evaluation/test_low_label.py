from __future__ import annotations

import numpy as np
import pytest

from attar.data.splits import subset_per_class
from attar.errors import AttarError
from attar.evaluation.linear import Standardiser, linear_probe
from attar.evaluation.low_label import FewShot, LowLabel


@pytest.fixture
def subject(make_subject, clusters):
    def make(n=120, *, apart=10.0, seed=0):
        return make_subject(*clusters(n, apart=apart), *clusters(30, apart=apart, seed=1), seed=seed)

    return make


def test_one_outcome_a_fraction_with_several_seeds(subject):
    few, all_labels = LowLabel(fractions=(0.1, 1.0), num_seeds=3).run(subject())
    assert (len(few.scores), len(all_labels.scores)) == (3, 1)  # all labels can be drawn in one way only
    assert (few.variant, all_labels.variant) == ("10 %", "100 %")
    assert few.settings == {"fraction": 0.1, "num_labelled": 12, "num_seeds": 3}


def test_all_labels_equal_the_linear_probe(subject):
    s = subject(apart=1.0)
    outcome = LowLabel(fractions=(1.0,)).run(s)[0]
    probe = linear_probe(s.train.values, s.train_labels, num_classes=3)
    assert outcome.scores[0] == pytest.approx(probe.scores(s.test.values))


def test_a_few_labels_use_the_statistics_of_all_training_images(subject):
    s = subject(apart=1.0)
    outcome = FewShot(shots=(3,), num_seeds=1).run(s)[0]
    rows = subset_per_class(s.task.train_labels, 3, 0)
    few, labels = s.train.values[rows], s.train_labels[rows]
    probe = linear_probe(few, labels, num_classes=3, standardise=Standardiser.of(s.train.values))
    assert outcome.scores[0] == pytest.approx(probe.scores(s.test.values))
    assert outcome.scores[0] != pytest.approx(linear_probe(few, labels, num_classes=3).scores(s.test.values))


def test_separable_classes_need_few_labels(subject):
    s = subject()
    for outcome in FewShot(num_seeds=2).run(s):
        for scores in outcome.scores:
            assert (scores.argmax(1) == s.task.test_labels).all()


def test_seeds_draw_different_labels_and_more_labels_help(subject):
    s = subject(apart=1.0)
    one, ten = FewShot(shots=(1, 20), num_seeds=4).run(s)
    accuracy = lambda outcome: [(p.argmax(1) == s.task.test_labels).mean() for p in outcome.scores]  # noqa: E731
    assert len(set(accuracy(one))) > 1
    assert np.mean(accuracy(ten)) > np.mean(accuracy(one))


def test_the_same_labels_are_drawn_for_every_subject(subject, monkeypatch):
    drawn = []
    from attar.evaluation import low_label

    real = low_label.subset_per_class
    monkeypatch.setattr(low_label, "subset_per_class", lambda *a: drawn.append(real(*a)) or drawn[-1])
    for apart in (1.0, 5.0):
        FewShot(shots=(2,), num_seeds=3).run(subject(apart=apart))
    for a, b in zip(drawn[:3], drawn[3:]):
        assert (a == b).all()


def test_usual_shots_are_those_that_every_class_has(subject):
    assert [o.variant for o in FewShot(num_seeds=1).run(subject(n=18))] == ["1-shot", "5-shot"]


def test_errors_name_what_is_accepted(subject):
    with pytest.raises(AttarError, match=r"fractions=\(1.5,\) is not accepted; give shares in \(0, 1\]"):
        LowLabel(fractions=(1.5,)).run(subject())
    with pytest.raises(AttarError, match=r"shots=\(7,\) is not accepted: class 'class 0' has 6 .* from 1 to 6"):
        FewShot(shots=(7,)).run(subject(n=18))
    with pytest.raises(AttarError, match="few_shot: num_seeds=0 is not accepted"):
        FewShot(num_seeds=0).run(subject())
