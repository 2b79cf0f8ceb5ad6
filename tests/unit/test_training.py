"""The training loop: what it learns, whom it holds out, what it keeps, and how it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import training
from bench.curves import Curve
from bench.threats import Pairs
from bench.training import fit, held_out_people, recorded, train
from bench.world import seeded


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Shade(nn.Module):
    """An image of one color, a linear function of the record."""

    def __init__(self) -> None:
        super().__init__()
        self.paint = nn.Linear(3, 3)
        self.seen: list[Tensor] = []

    def forward(self, records: Tensor) -> Tensor:
        if self.training:
            self.seen.append(records.detach().clone())
        return self.paint(records)[:, :, None, None].float().expand(-1, -1, 4, 4)


def shades(count: int = 6, shift: float = 0) -> Pairs:
    records = numbers(count, 3) + shift
    people = np.array([f"person {number}" for number in range(count)])
    return Pairs(records, records[:, :, None, None].expand(-1, -1, 4, 4) - shift, people)


def trained(*pools: Pairs, seed: int = 0, steps: int = 150) -> Shade:
    with seeded(seed):
        return train(Shade(), pools, steps=steps, rate=0.05)


def test_training_learns_and_hands_back_a_frozen_network() -> None:
    pairs = shades()
    network = trained(pairs)
    assert (network(pairs.records) - pairs.images).abs().mean() < 0.05
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_training_is_fixed_by_the_global_seed() -> None:
    one, again, other = trained(shades(), steps=5), trained(shades(), steps=5), None
    assert torch.equal(one.paint.weight, again.paint.weight)
    other = trained(shades(), steps=5, seed=1)
    assert not torch.equal(one.paint.weight, other.paint.weight)


def test_training_draws_from_all_pools_and_more_than_they_hold() -> None:
    network = trained(shades(count=2), shades(count=2, shift=100), steps=20)
    assert all(len(records) == 32 for records in network.seen)
    far = [bool((records > 50).all()) for records in network.seen]
    near = [bool((records < 50).all()) for records in network.seen]
    assert [a != b for a, b in zip(far, near, strict=True)] == [True] * 20
    assert 0 < sum(far) < 20


def test_one_step_is_enough_to_train() -> None:
    before = trained(shades(), steps=1)
    assert len(before.seen) == 1
    assert torch.isfinite(before.paint.weight).all()


def test_the_loss_is_the_callers() -> None:
    with seeded(0):
        network = train(
            Shade(),
            [shades()],
            steps=150,
            rate=0.05,
            loss=lambda made, _: (made - 3).square().mean(),
        )
    assert (network(shades().records) - 3).abs().mean() < 1


# --- people held out ----------------------------------------------------------------------------


def test_a_tenth_of_the_people_is_never_trained_on() -> None:
    pool, other = shades(count=60), shades(count=60, shift=100)
    absent = held_out_people([pool, other])
    assert len(absent) == 6
    seen = torch.cat(trained(pool, other, steps=40).seen)
    for one in (pool, other):
        gone = one.records[np.isin(one.identities, absent)]
        assert not (seen[:, None] == gone).all(2).any()


def test_nobody_is_held_out_of_few_and_not_too_many_of_many() -> None:
    assert len(held_out_people([shades(count=39)])) == 0
    assert len(held_out_people([shades(count=5000)])) == 64


def test_all_photos_of_a_person_stay_together() -> None:
    pool = shades(count=80)
    twice = Pairs(pool.records, pool.images, np.repeat(pool.identities[:40], 2))
    absent = held_out_people([twice])
    assert sorted(absent) == sorted({*absent})
    assert len(absent) == 4


def curve_of(losses: list[list[float]], steps: int = 12) -> tuple[Curve, float]:
    """Train one weight by one a step; return the curve, and the weight that was kept."""
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    held = iter(losses)
    curve = fit(
        network,
        lambda: -network.weight.sum(),
        steps=steps,
        rate=1.0,
        optimizer=torch.optim.SGD,
        held_out=lambda: torch.tensor(next(held)),
    )
    return curve, network.weight.item()


def test_the_weights_of_the_best_evaluation_are_kept() -> None:
    worse_later: list[list[float]]
    worse_later = [[5.0, 5], [4, 4], [1, 1], [2, 2], [2, 2], [2, 3], [3, 3], [3, 3], [3, 3]]
    curve, weight = curve_of(worse_later)
    # The third is best; six more without a better one end the training.
    assert curve.best == 3
    assert curve.steps == list(range(1, 10))
    assert curve.held_out == [5, 4, 1, 2, 2, 2.5, 3, 3, 3]
    assert curve.more_budget_helps is False
    assert 0 < weight < curve_of([[float(-step)] * 2 for step in range(12)])[1]


@pytest.mark.parametrize(
    ("last_quarter", "helps"),
    [
        ([[0.9, 1.9], [0.8, 1.8], [0.7, 1.7]], True),  # both people fall, by as much
        ([[1.5, 1.4], [1.6, 1.3], [1.9, 0.9]], False),  # the mean falls, by less than its noise
        ([[0.7, 1.7], [0.8, 1.8], [0.9, 1.9]], False),  # better before the end
    ],
)
def test_more_budget_helps_where_the_end_still_brought_more_than_noise(
    last_quarter: list[list[float]], helps: bool
) -> None:
    falling = [[2.0 - part / 9, 3.0 - part / 9] for part in range(9)]
    assert curve_of(falling + last_quarter)[0].more_budget_helps is helps


def test_without_people_to_hold_out_the_last_weights_are_kept() -> None:
    with recorded() as curves:
        trained(shades(), steps=24)
    (curve,) = curves
    assert curve.steps == list(range(2, 25, 2))
    assert curve.best == 24
    assert curve.held_out == []
    assert curve.more_budget_helps is None
    assert curve.training[-1] < curve.training[0]


def test_curves_are_gathered_in_the_block_and_not_outside() -> None:
    with recorded() as outer:
        trained(shades(), steps=2)
        with recorded() as inner:
            trained(shades(), steps=3)
    trained(shades(), steps=1)
    assert [curve.steps[-1] for curve in outer] == [2, 3]
    assert [curve.steps[-1] for curve in inner] == [3]
    assert inner[0].network == "Shade"


# --- interruption -------------------------------------------------------------------------------


def test_a_checkpoint_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    target = tmp_path / "checkpoint"
    said: list[str] = []

    def run(checkpoint: Path | None, fails_at: int | None = None) -> tuple[Tensor, Curve]:
        network, calls = nn.Linear(3, 1), 0
        nn.init.zeros_(network.weight)

        def batch_loss() -> Tensor:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise KeyboardInterrupt
            x = torch.randn(8, 3)
            return (network(x) - x.sum(1, keepdim=True)).square().mean()

        def held_out() -> Tensor:
            x = numbers(20, 3, seed=1)
            return (network(x) - x.sum(1, keepdim=True)).square().flatten()

        options: dict[str, Any] = {"optimizer": torch.optim.AdamW, "held_out": held_out}
        curve = fit(
            network,
            batch_loss,
            steps=30,
            rate=0.1,
            checkpoint=checkpoint,
            progress=said.append,
            **options,
        )
        return network.weight.detach().clone(), curve

    with seeded(0):
        whole = run(None)
    with seeded(0), pytest.raises(KeyboardInterrupt):
        run(target, fails_at=18)
    assert target.is_file()
    said.clear()
    with seeded(5):
        resumed = run(target)
    assert torch.equal(resumed[0], whole[0])
    assert resumed[1] == whole[1]
    assert said[0] == "step 18 of 30"
    assert not target.exists()
