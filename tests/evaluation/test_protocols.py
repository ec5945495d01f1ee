from __future__ import annotations

import pytest

from attar.errors import RecipeError
from attar.evaluation.finetune import Finetune
from attar.evaluation.knn import Knn
from attar.evaluation.layers import Layers
from attar.evaluation.linear import Linear
from attar.evaluation.low_label import FewShot, LowLabel
from attar.evaluation.mlp import Mlp
from attar.evaluation.protocols import PROTOCOLS, parse_protocol


@pytest.mark.parametrize(
    ("text", "protocol"),
    [
        ("knn", Knn()),
        ("knn:200", Knn(k=200)),
        ("knn:k=10,temperature=0.1", Knn(k=10, temperature=0.1)),
        ("linear:sgd", Linear(solver="sgd")),
        ("linear:penalties=1,0.1", Linear(penalties=(1.0, 0.1))),
        ("low_label:0.01,0.1", LowLabel(fractions=(0.01, 0.1))),
        ("low_label:0.01, 0.1, num_seeds=3", LowLabel(fractions=(0.01, 0.1), num_seeds=3)),
        ("few_shot:1,5", FewShot(shots=(1, 5))),
        ("finetune:1e-3,epochs=5", Finetune(learning_rates=(1e-3,), epochs=5)),
        ("mlp:64,learning_rates=1e-3", Mlp(hidden=64, learning_rates=(1e-3,))),
        ("layers:1000", Layers(values=1000)),
    ],
)
def test_what_a_person_types(text, protocol):
    assert parse_protocol(text) == protocol
    assert parse_protocol(protocol) is protocol


def test_every_bare_setting_exists():
    for name, kind in PROTOCOLS.items():
        assert kind.name == name
        assert kind.bare in kind.__dataclass_fields__


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kn", r"unknown protocol 'kn'. Did you mean knn\?"),
        ("knn:n=3", "knn: unknown setting 'n'. Known: k, temperature"),
        ("knn:many", "knn: k='many' is not accepted"),
        ("knn:1,2", "knn: k takes one value, not 2: 1, 2"),
        ("low_label:some", "low_label: fractions.0='some' is not accepted"),
    ],
)
def test_errors_in_the_users_words(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_protocol(text)
