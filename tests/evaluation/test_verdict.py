from __future__ import annotations

from dataclasses import replace

import pytest

from attar.evaluation.intervals import next_draw_margin
from attar.evaluation.verdict import NO_WEIGHTS, NOT_PUBLISHED, Comparison, Findings, verdict


def against(subject, value, low, high, *, ours=0.8, metric="top1"):
    return Comparison("linear", "", metric, subject, ours, value, low, high)


def findings(*comparisons, **changed):
    values = dict(protocol="linear", metric="top1", value=0.8, low=0.78, high=0.82, chance=0.1, num_test=2000)
    return Findings(**{**values, "comparisons": list(comparisons), **changed})


RANDOM = against("random_init", 0.5, 0.27, 0.33)
PIXELS = against("pixels", 0.4, 0.36, 0.44)
HOG = against("hog", 0.6, 0.17, 0.23)


def test_better_than_every_control():
    text = verdict(findings(RANDOM, PIXELS, HOG))
    first, second, *_ = text.splitlines()
    assert first == "BETTER: the model beats the best control, HOG, by +20.0 points (+17.0 to +23.0)."
    assert second == "linear, top-1: 80.0 % (78.0 % to 82.0 %) on 2,000 test images; chance is 10.0 %."
    assert "How sure: ± 2.0 points at 95 %" in text
    assert text.splitlines()[-1].startswith("Next: fine-tune")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.05, -0.01, "NO GAIN: training has not helped. The model is worse than"),
        (-0.02, 0.03, "NO GAIN: the model cannot be told from"),
    ],
)
def test_no_gain_over_random_comes_first(low, high, words):
    text = verdict(findings(against("random_init", 0.8, low, high), PIXELS, HOG))
    assert text.startswith(f"{words} the same network at random initialisation.")
    assert "Next: train longer" in text and "two views" not in text, "many methods have one"


def test_what_untrained_networks_differ_by_is_said():
    networks = (0.78, 0.8, 0.79, 0.81, 0.77)
    margin = next_draw_margin(networks)
    five = replace(against("random_init", 0.79, 0.01 - margin, 0.01 + margin), networks=networks)
    text = verdict(findings(five, PIXELS, num_test=500))
    assert "random initialisation: 79.0 % (mean of 5, 77.0 % to 81.0 %); the model is not" in text
    assert "The difference to random initialisation allows for what the 5 of them differ by." in text
    assert "Next: untrained networks alone lie 4.0 points apart: train with other seeds too" in text
    assert "test images would settle" not in text, "the networks' spread would stay"
    one_side = replace(five, low=five.low - 0.01)
    assert "test images would settle" not in verdict(findings(one_side, PIXELS, num_test=500))
    alike = replace(against("random_init", 0.79, -0.03, 0.05), networks=(0.79, 0.791, 0.789))
    text = verdict(findings(alike, PIXELS, num_test=500))
    assert "test images would settle" in text and "other seeds" not in text, "the interval is that of the images"
    equal = replace(against("random_init", 0.8, -0.04, 0.04), networks=(0.8, 0.8, 0.8))
    text = verdict(findings(equal, PIXELS))
    assert text.startswith("NO GAIN") and "other seeds" not in text, "networks that are alike leave nothing to luck"
    text = verdict(findings(RANDOM, PIXELS))
    assert "beats the best control, the same network at random initialisation, drawn once, by" in text
    assert "Only one random initialisation was drawn" in text


def test_published_weights_are_no_advice_where_there_are_none():
    same = against("random_init", 0.8, -0.02, 0.03)
    assert "--pretrained" in verdict(findings(same, PIXELS))
    assert "--pretrained" not in verdict(findings(same, PIXELS, omitted={"pretrained": NOT_PUBLISHED}))


def test_the_other_protocols_are_all_named_beside_the_telling_one():
    few = Comparison("low_label", "10 %", "roc_auc", "random_init", 0.6, 0.5, 0.05, 0.15)
    text = verdict(findings(RANDOM, PIXELS, others=[replace(RANDOM, protocol="knn"), few]))
    assert "measured otherwise: knn better, +30.0 points (+27.0 to +33.0); low_label 10 % better, +0.100 (" in text


def test_no_gain_over_pixels_is_said_although_random_is_beaten():
    text = verdict(findings(RANDOM, against("pixels", 0.85, -0.07, -0.03), HOG))
    assert text.startswith("NO GAIN: the model is worse than raw pixels.")
    assert "augmentations may remove" in text


def test_no_gain_names_the_controls_that_do_better():
    same, worse = against("random_init", 0.8, -0.02, 0.03), against("random_init", 0.85, -0.07, -0.03)
    pixels, hog = against("pixels", 0.85, -0.07, -0.03), against("hog", 0.9, -0.12, -0.08)
    told = "NO GAIN: the model cannot be told from the same network at random initialisation"
    assert verdict(findings(same, PIXELS, HOG)).startswith(f"{told}.")
    assert verdict(findings(same, pixels, HOG)).startswith(f"{told}, and is worse than raw pixels.")
    assert verdict(findings(same, pixels, hog)).startswith(f"{told}, and is worse than HOG and raw pixels.")
    told = "NO GAIN: training has not helped. The model is worse than the same network at random initialisation"
    assert verdict(findings(worse, pixels, hog)).startswith(f"{told}, HOG and raw pixels.")


def test_a_teacher_no_better_than_an_untrained_network_is_told_of():
    same = against("random_init", 0.8, -0.02, 0.03)
    text = verdict(findings(same, against("teacher", 0.7, 0.08, 0.12)))
    assert "It is not above the same network at random initialisation itself, so it had nothing to teach." in text
    assert "It keeps" not in text and "Next: take a better teacher" in text
    assert "It keeps" in verdict(findings(same, against("teacher", 0.81, -0.02, 0.03)))


def test_features_that_nobody_trained_get_no_advice_on_training():
    worse = (against("pixels", 0.85, -0.07, -0.03), against("hog", 0.85, -0.07, -0.03))
    text = verdict(findings(*worse, omitted={"random_init": NO_WEIGHTS}))
    assert "Next: these features are not learnt" in text
    assert not any(words in text for words in ("augmentations", "train longer", "fine-tune"))


def test_hog_better_than_the_model():
    text = verdict(findings(RANDOM, PIXELS, against("hog", 0.85, -0.07, -0.03)))
    assert text.startswith("NOT ENOUGH: HOG does better than the model, by 5.0 points.")


def test_undecided_says_how_many_images_would_settle_it():
    text = verdict(findings(RANDOM, PIXELS, against("hog", 0.79, -0.01, 0.03), num_test=500))
    assert text.startswith("UNDECIDED: the model cannot be told from the best control, HOG.")
    assert "about 2,000 test images would settle" in text  # half-width 2, difference 1: four times as many
    same = verdict(findings(RANDOM, PIXELS, against("hog", 0.8, -0.02, 0.02)))
    assert "only a much larger, or harder, test set could tell the model from HOG" in same


def test_collapse_overrules_everything():
    text = verdict(findings(RANDOM, feature_std=0.001, feature_rank=40.0))
    assert text.startswith("COLLAPSED")
    assert text.splitlines()[-1].startswith("Next: lower the learning rate")
    assert verdict(findings(RANDOM, feature_std=0.3, feature_rank=1.1)).startswith("COLLAPSED")


def test_retention_is_counted_above_chance():
    text = verdict(findings(RANDOM, PIXELS, HOG, against("teacher", 0.9, -0.12, -0.08)))
    assert "It keeps 88 % of what the teacher gains over chance." in text  # 0.7 / 0.8
    assert "Next: distil longer" in text
    text = verdict(findings(RANDOM, PIXELS, HOG, against("teacher", 0.81, -0.02, 0.0)))
    assert "keeps 99 %" in text
    assert "a still smaller student may do" in text
    assert "keeps" not in verdict(findings(RANDOM, against("teacher", 0.11, 0.6, 0.8)))


def test_a_better_pretrained_twin_is_recommended():
    text = verdict(findings(RANDOM, PIXELS, HOG, against("pretrained", 0.9, -0.12, -0.08)))
    assert "The ImageNet-pretrained twin: 90.0 %; the model is worse, -10.0 points" in text
    assert "start from it (--pretrained)" in text


def test_a_small_test_set_is_called_small():
    text = verdict(findings(RANDOM, low=0.7, high=0.9, num_test=60))
    assert "That is wide: for ± 2.0 points about 1,500 test images are needed." in text


def test_over_seeds_the_number_of_test_images_is_no_remedy():
    text = verdict(findings(RANDOM, against("hog", 0.79, -0.01, 0.03), low=0.7, high=0.9, num_seeds=5))
    assert "at 95 %, over 5 draws of the labelled images; differences are paired by draw." in text
    assert "Next: more draws (num_seeds) would tell" in text
    assert "test images are needed" not in text


def test_areas_are_not_percentages():
    auc = dict(metric="roc_auc", chance=0.5)
    text = verdict(findings(against("random_init", 0.6, 0.15, 0.25, metric="roc_auc"), **auc))
    assert "linear, ROC-AUC: 0.800 (0.780 to 0.820)" in text
    assert "+0.200 (+0.150 to +0.250)" in text
    assert "%" not in text.splitlines()[1]


def test_without_controls_nothing_follows():
    text = verdict(findings(seen_in_pretraining="without labels", omitted={"hog": "not asked"}))
    assert text.startswith("NO CONTROLS")
    assert "Pretraining has seen these images, without labels." in text
    assert "Not measured: hog (not asked)." in text
