"""Health gauges on clouds whose value is known."""

import math

import pytest
import torch

from attar.train.health import HealthMonitor, alignment, embedding_std, online_knn, rankme, uniformity


def test_isotropic_cloud_and_collapse():
    cloud = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert embedding_std(cloud) == pytest.approx(1.0, abs=0.02)
    assert embedding_std(torch.ones(10, 64)) == pytest.approx(0.0, abs=1e-6)
    assert embedding_std(cloud * 100) == pytest.approx(embedding_std(cloud))


def test_rankme_counts_equal_directions():
    assert rankme(torch.eye(8)) == pytest.approx(8.0, rel=1e-3)
    assert rankme(torch.ones(10, 8)) == pytest.approx(1.0, abs=1e-3)


def test_alignment_and_uniformity_closed_forms():
    e = torch.eye(4)
    assert alignment(e, e) == 0.0
    assert alignment(e, -e) == pytest.approx(4.0)
    assert alignment(e, e.roll(1, 0)) == pytest.approx(2.0)
    assert uniformity(e) == pytest.approx(math.log(math.exp(-4.0)))
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-6)


def test_online_knn_is_perfect_on_clusters_and_chance_on_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    clusters = torch.eye(8)[labels] + 0.05 * torch.randn(200, 8, generator=generator)
    assert online_knn(clusters, labels) == 1.0
    assert online_knn(torch.randn(200, 8, generator=generator), labels) < 0.45


def test_monitor_keeps_the_last_rows_and_reports_a_collapse():
    monitor = HealthMonitor(num_rows=64)
    assert monitor.measure() == {}
    for _ in range(5):
        monitor.add(torch.ones(32, 16), None)
    gauges = monitor.measure()
    assert gauges["collapsed"] and "alignment" not in gauges
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        rows = torch.randn(32, 16, generator=generator)
        monitor.add(rows, rows)
    gauges = monitor.measure()
    assert not gauges["collapsed"] and gauges["alignment"] == 0.0


def test_a_spike_of_the_gradient_is_its_largest_norm_over_the_median_since_the_last_measurement():
    monitor = HealthMonitor()
    for norm in (2.0, 1.0, 30.0, 2.0, 3.0):
        monitor.add_gradient(torch.tensor(norm))
    assert monitor.measure() == {"gradient_spike": 15.0}
    monitor.add_gradient(torch.tensor(7.0))
    assert monitor.measure() == {"gradient_spike": 1.0}
    assert monitor.measure() == {}
