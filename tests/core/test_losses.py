"""Losses against MONAI's, against hand-made values, and their sums over parts."""

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss

from liverseg_core.config import TrainConfig
from liverseg_core.training.losses import build_loss, count, means, one_hot, soft_dice


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 6, 4, generator=generator, dtype=torch.float32)
    return logits, torch.randint(0, 3, (2, 8, 6, 4), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("over_batch", [True, False])
@pytest.mark.parametrize(("name", "peer"), [("dice", DiceLoss), ("dice_ce", DiceCELoss)])
def test_value_and_gradient_are_monais(
    batch: tuple[torch.Tensor, torch.Tensor], name: str, peer: type[torch.nn.Module], over_batch: bool
) -> None:
    logits, label = batch
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = build_loss(TrainConfig(loss=name, batch_dice=over_batch))([ours], label)
    expected = peer(softmax=True, batch=over_batch)(theirs, one_hot(label))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_binary_cross_entropy_is_torchs(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, label = batch
    expected = torch.nn.BCEWithLogitsLoss()(logits, one_hot(label))
    torch.testing.assert_close(build_loss(TrainConfig(loss="bce"))([logits], label), expected)


def test_levels_count_half_as_much_each(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, label = batch
    small, smaller = logits[..., :4, :3, :2], logits[..., :2, :1, :1]
    label = label[:, :8, :4, :4]
    logits, small = logits[..., :4, :], small[..., :2, :]
    loss = build_loss(TrainConfig(loss="dice_ce"))
    parts = [
        loss([logits], label),
        loss([small], label[:, ::2, ::2, ::2]),
        loss([smaller], label[:, 1::4, 1::4, 1::4]),
    ]
    expected = (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75
    torch.testing.assert_close(loss([logits, small, smaller], label), expected)


def test_a_perfect_prediction_costs_nothing(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, label = batch
    for name in ("dice", "dice_ce"):
        perfect = (one_hot(label) - 0.5) * 100
        assert float(build_loss(TrainConfig(loss=name))([perfect], label)) == pytest.approx(0, abs=1e-4)


def test_soft_dice_by_hand() -> None:
    y = torch.zeros(2, 1, 1, 1, 4)
    y[0, ..., :2] = 1
    p = torch.zeros(2, 1, 1, 1, 4)
    p[0, ..., 1:3] = 1
    assert float(soft_dice(p, y, batch=True)) == pytest.approx(0.5, abs=1e-4)
    assert float(soft_dice(p, y, batch=False)) == pytest.approx(0.75, abs=1e-4)  # the second patch is empty


def test_counts_add_up(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, label = batch
    loss = torch.tensor(0.5)
    together = count(loss, logits, label)
    apart = count(loss, logits[:1], label[:1]) + count(loss, logits[1:], label[1:])
    assert torch.equal(together[2:], apart[2:])
    assert apart[:2].tolist() == [2, 1]
    predicted = logits.argmax(1)
    for name, inside, there in (
        ("dice_liver", predicted > 0, label > 0),
        ("dice_tumour", predicted == 2, label == 2),
    ):
        dice = 2 * (inside & there).sum() / (inside.sum() + there.sum())
        assert means(together, 1)[name] == pytest.approx(float(dice))
    assert means(apart, 2)["loss"] == 0.5


def test_nothing_anywhere_has_no_dice() -> None:
    logits = torch.zeros(1, 3, 2, 2, 2)
    logits[:, 0] = 1
    counts = count(torch.tensor(1.0), logits, torch.zeros(1, 2, 2, 2, dtype=torch.uint8))
    assert means(counts, 1) == {"loss": 1.0}
