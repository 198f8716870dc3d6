import cmath

import pytest
import torch

from mambabyte.models.layers import append_to_cache, apply_rotary, causal_attention, rotary_factors


def naive_attention(q, k, v, window):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    place = torch.arange(k.shape[2])
    distance = place[k.shape[2] - q.shape[2] :, None] - place
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("window", [None, 1, 2, 7, 600])
@pytest.mark.parametrize(("length", "before"), [(1, 0), (1, 30), (300, 0), (300, 30), (5, 700)])
def test_attend_is_masked_softmax(window, length, before):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, length, 3, 4, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, before + length, 3, 4, generator=generator, dtype=torch.float64)
    expected = naive_attention(q, k, v, window or 10**9)
    assert torch.allclose(causal_attention(q, k, v, window), expected, atol=1e-12)


def test_rotary_scores_depend_on_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)

    def score(q_place, k_place):
        rotated = [
            apply_rotary(x, rotary_factors(torch.tensor([p]), 6, 100.0))
            for x, p in ((q, q_place), (k, k_place))
        ]
        assert torch.equal(rotated[0][..., 6:], q[..., 6:]), "channels beyond the first 6 are left alone"
        return (rotated[0] * rotated[1]).sum().item()

    assert score(13, 9) == pytest.approx(score(4, 0), abs=1e-5)
    assert abs(score(13, 9) - score(13, 8)) > 1e-3


def test_rotary_angles_of_a_float64_model_are_float64():
    places = torch.tensor([0, 1, 8191, 1_000_003])
    factors = rotary_factors(places, 8, 10_000.0, torch.float64)[:, 0]
    rates = [10_000.0 ** (-i / 8) for i in (0, 2, 4, 6)]
    expected = [[cmath.rect(1, place * rate) for rate in rates] for place in places.tolist()]
    # an angle of 1e6 has ten digits left after the point
    assert (factors - torch.tensor(expected, dtype=torch.complex128)).abs().max() < 1e-9
    x = torch.randn(1, 4, 1, 8, dtype=torch.float64)
    rotated = apply_rotary(x, factors.unsqueeze(-2))
    assert torch.allclose(rotated.square().sum(-1), x.square().sum(-1), rtol=1e-14)


@torch.no_grad()
def test_append_copies_only_what_is_new_and_keeps_earlier_caches():
    new = torch.arange(400.0).view(1, 400, 1, 1)
    cache = append_to_cache(append_to_cache(new[:, :0], new[:, :3]), new[:, 3:4])
    buffers = set()
    for t in range(4, 400):
        cache = append_to_cache(cache, new[:, t : t + 1])
        buffers.add(cache.data_ptr())
        assert torch.equal(cache, new[:, : t + 1])
    assert len(buffers) < 8, "396 bytes were copied a few times only"
    branch = append_to_cache(cache, -new[:, :1])
    assert torch.equal(append_to_cache(cache, new[:, :1])[:, -1], new[:, 0])
    assert torch.equal(branch[:, -1], -new[:, 0]) and torch.equal(branch[:, :-1], new)


def test_append_has_gradients():
    cache = torch.ones(1, 2, 1, 1, requires_grad=True)
    append_to_cache(cache, torch.ones(1, 1, 1, 1)).sum().backward()
    assert torch.equal(cache.grad, torch.ones(1, 2, 1, 1))
