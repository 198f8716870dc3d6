"""Which steps are spikes, and what is recorded about them."""

from __future__ import annotations

import torch

from mambabyte.training.spikes import HISTORY, SpikeDetector

NAN = float("nan")


def judged(detector: SpikeDetector, steps: list[tuple[float, float]], first: int = 1) -> list[int]:
    """The steps, among those of (loss, gradient norm), that were skipped."""
    out = []
    for step, (loss, norm) in enumerate(steps, start=first):
        detector.record(step, {"step": step}, torch.zeros(1), torch.ones(1))
        if detector.judge(step, torch.tensor(loss), torch.tensor(norm)):
            out.append(step)
    found = detector.found(wait=True)
    assert [spike.step for spike in found] == out
    assert all(spike.micro_batches[0][0] == {"step": spike.step} for spike in found)
    return out


def usual(steps: int) -> list[tuple[float, float]]:
    """Losses of 2 +- 0.1 and norms of 1 +- 0.2, these being the standard deviations."""
    return [(2 + 0.1 * (-1) ** step, 1 + 0.2 * (-1) ** (step // 2)) for step in range(steps)]


def test_what_is_not_finite_is_a_spike_with_or_without_threshold() -> None:
    steps = [(2.0, 1.0), (NAN, 1.0), (2.0, float("inf")), (2.0, 1e30), (float("-inf"), NAN)]
    for threshold in (None, 6.0):
        detector = SpikeDetector(threshold, torch.device("cpu"))
        assert judged(detector, steps) == [2, 3, 5]
        assert detector.skipped_steps == 3


def test_the_threshold_is_in_standard_deviations_of_loss_and_of_norm() -> None:
    for spike, is_one in (
        ((2.59, 1.0), False),
        ((2.61, 1.0), True),
        ((2.0, 2.19), False),
        ((2.0, 2.21), True),
        ((0.0, 0.0), False),  # small values are no spikes
    ):
        detector = SpikeDetector(6.0, torch.device("cpu"))
        assert judged(detector, [*usual(HISTORY), spike]) == [HISTORY + 1] * is_one


def test_half_a_history_is_needed_and_spikes_do_not_enter_it() -> None:
    detector = SpikeDetector(6.0, torch.device("cpu"))
    assert judged(detector, [*usual(HISTORY // 2 - 1), (9.0, 9.0)]) == []
    detector = SpikeDetector(6.0, torch.device("cpu"))
    assert judged(detector, [*usual(HISTORY // 2), (9.0, 9.0), (9.0, 9.0), *usual(HISTORY), (9.0, 9.0)]) == [
        HISTORY // 2 + 1,
        HISTORY // 2 + 2,
        HISTORY // 2 + 3 + HISTORY,
    ]


def test_the_oldest_steps_are_forgotten() -> None:
    detector = SpikeDetector(6.0, torch.device("cpu"))
    high = [(loss + 7, norm) for loss, norm in usual(HISTORY)]
    assert judged(detector, [*high, *usual(HISTORY), (9.0, 1.0)]) == [2 * HISTORY + 1]


def test_spikes_in_a_row_are_counted_and_a_restored_detector_continues() -> None:
    detector = SpikeDetector(6.0, torch.device("cpu"))
    judged(detector, [*usual(HISTORY), (NAN, 1.0), (9.0, 1.0)])
    again = SpikeDetector(6.0, torch.device("cpu"))
    again.load_state_dict(detector.state_dict())
    for each in (detector, again):
        for step, loss in ((HISTORY + 3, 9.0), (HISTORY + 4, 2.0), (HISTORY + 5, NAN)):
            each.record(step, {}, torch.zeros(1), torch.ones(1))
            each.judge(step, torch.tensor(loss), torch.tensor(1.0))
        assert [(spike.step - HISTORY, spike.in_a_row) for spike in each.found(wait=False)] == [
            (3, 3),
            (5, 1),
        ]
        assert each.skipped_steps == 4
