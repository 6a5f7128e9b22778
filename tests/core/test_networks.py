"""Networks: shapes, seeds, MONAI's bits, deep supervision, and the patch sizes that each can take."""

import itertools
from collections.abc import Sequence

import monai.networks.nets
import pytest
import torch
from torch import nn

from flows.settings import load_settings
from liverseg_core.config import NetworkConfig
from liverseg_core.errors import LiversegError
from liverseg_core.models.networks import build_network, check_patch_size

SMALL = {
    "unet": NetworkConfig(channels=(4, 8)),
    "ahnet": NetworkConfig(name="ahnet", blocks=(1, 1, 1, 1)),
    "resenc": NetworkConfig(name="resenc", channels=(4, 8, 8), blocks=(1, 2, 1)),
}


@pytest.mark.parametrize("name", SMALL)
def test_logits_have_the_patchs_shape_and_the_seed_decides(name: str) -> None:
    x = torch.randn(1, 1, 32, 32, 32)
    state = torch.get_rng_state()
    first, second, other = (build_network(SMALL[name], seed).eval() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        assert first(x).shape == (1, 3, 32, 32, 32)
        assert torch.equal(first(x), second(x))
        assert not torch.equal(first(x), other(x))


def monais(config: NetworkConfig, seed: int) -> nn.Module:
    """MONAI's network of these settings, with the weights that it gives it."""
    torch.manual_seed(seed)
    sizes = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    if config.name == "ahnet":
        layers, mode = config.blocks or (3, 4, 6, 3), config.upsample
        return monai.networks.nets.AHNet(layers, **sizes, psp_block_num=config.psp_blocks, upsample_mode=mode)
    return monai.networks.nets.UNet(
        **sizes,
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=config.residual_units,
        norm=config.norm,
    )


UNETS = [
    NetworkConfig(channels=channels, residual_units=units, norm=norm)
    for channels, units, norm in itertools.product(
        ((4, 8), (4, 8, 8), (8, 4, 12, 16)), (0, 1, 2, 3), ("instance", "batch")
    )
]
AHNETS = [
    NetworkConfig(name="ahnet", blocks=blocks, psp_blocks=psp, upsample=mode)
    for blocks, psp, mode in (
        ((1, 1, 1, 1), 0, "trilinear"),
        ((1, 1, 1, 1), 1, "nearest"),
        ((1, 1, 1, 1), 2, "trilinear"),
        ((1, 1, 1, 1), 2, "transpose"),
        ((2, 1, 3, 2), 1, "transpose"),
    )
]


def of_a_step(network: nn.Module, x: torch.Tensor) -> Sequence[torch.Tensor]:
    """Logits in training, every gradient, what the norms have learned, and logits afterwards."""
    logits = network(x)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(gradients) == len(list(network.parameters()))
    with torch.inference_mode():
        return [logits.detach(), *gradients, *network.buffers(), network.eval()(x)]


@pytest.mark.parametrize("config", [*UNETS, *AHNETS], ids=lambda c: "-".join(map(str, dict(c).values())))
def test_unet_and_ahnet_are_monais_to_the_bit(config: NetworkConfig) -> None:
    """So the models, the checkpoints and the keys of trainings in MONAI's classes stay what they are."""
    network, expected = build_network(config, 5), monais(config, 5)
    ours, theirs = network.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs), "the optimiser's state goes by this order"
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    x = torch.randn(2, 1, *((32, 32, 32) if config.name == "ahnet" else (16, 8, 24)))
    pairs = zip(of_a_step(network, x), of_a_step(expected, x), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


WHOLE = [
    *(load_settings(name, environment={}).train.network for name in ("phantom", "unet")),
    *(NetworkConfig(name="ahnet", psp_blocks=4, upsample=mode) for mode in ("transpose", "trilinear")),
]


@pytest.mark.parametrize("config", WHOLE, ids=("phantom", "unet", "ahnet", "ahnet-trilinear"))
def test_whole_networks_begin_with_monais_weights(config: NetworkConfig) -> None:
    ours, theirs = build_network(config, 0).state_dict(), monais(config, 0).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_deep_supervision_gives_halves_in_training_only() -> None:
    config = NetworkConfig(name="resenc", channels=(4, 4, 8, 8), blocks=(1, 1, 1, 1))
    network, x = build_network(config), torch.randn(2, 1, 16, 16, 8)
    outputs = network(x)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 16, 16, 8), (2, 3, 8, 8, 4)]
    torch.stack([output.mean() for output in outputs]).sum().backward()
    assert all(p.grad is not None for p in network.parameters()), "weights that never move"
    with torch.inference_mode():
        assert torch.allclose(network(x)[0], network.eval()(x))


def test_resenc_of_the_recipe_has_nnunets_size() -> None:
    """ResEnc M has about 102 million weights with two classes and one channel."""
    config = NetworkConfig(name="resenc", channels=(32, 64, 128, 256, 320, 320))
    with torch.device("meta"):
        weights = sum(p.numel() for p in build_network(config).parameters())
    assert 95e6 < weights < 110e6


def takes(config: NetworkConfig, size: tuple[int, int, int], batch: int) -> bool:
    """Whether the network really takes such patches in training."""
    try:
        outputs = build_network(config)(torch.randn(batch, 1, *size))
    except (RuntimeError, ValueError):
        return False
    return tuple((outputs[0] if isinstance(outputs, list) else outputs).shape[2:]) == size


def allowed(config: NetworkConfig, size: tuple[int, int, int], batch: int) -> bool:
    try:
        check_patch_size(config, size, batch)
    except LiversegError:
        return False
    return True


AHNET_SIZES = [((32, 32, 32), 2), ((32, 32, 32), 1), ((64, 32, 32), 1), ((48, 32, 32), 2), ((32, 32, 48), 2)]


@pytest.mark.parametrize(("psp", "mode"), itertools.product((0, 2, 3), ("transpose", "trilinear")))
def test_ahnets_size_rule_is_what_it_takes(psp: int, mode: str) -> None:
    config = NetworkConfig(name="ahnet", blocks=(1, 1, 1, 1), psp_blocks=psp, upsample=mode)
    for size, batch in AHNET_SIZES:
        assert allowed(config, size, batch) == takes(config, size, batch), (size, batch)


@pytest.mark.parametrize(("name", "norm"), itertools.product(("unet", "resenc"), ("instance", "batch")))
def test_size_rule_of_u_nets_is_what_they_take(name: str, norm: str) -> None:
    config = NetworkConfig(name=name, channels=(4, 4, 4), norm=norm)
    for size, batch in (((8, 8, 8), 1), ((4, 4, 4), 1), ((4, 4, 4), 2), ((6, 8, 8), 2), ((4, 4, 8), 1)):
        assert allowed(config, size, batch) == takes(config, size, batch), (size, batch)


def test_ahnet_at_96_takes_two_pyramid_blocks_and_no_four() -> None:
    """As the published sizes say: 96³ up to 2, or 3 by interpolation; 4 takes 128 × 128 × 32k."""
    for psp, mode, size, fits in (
        (2, "transpose", 96, True), (3, "transpose", 96, False), (3, "trilinear", 96, True),
        (4, "transpose", 96, False), (4, "transpose", 128, True),
    ):  # fmt: skip
        config = NetworkConfig(name="ahnet", psp_blocks=psp, upsample=mode)
        assert allowed(config, (size, size, 96), 2) == fits, (psp, mode, size)
    with pytest.raises(LiversegError, match=r"LS273: .*\(128, 128, 32\).*psp_blocks"):
        check_patch_size(NetworkConfig(name="ahnet", psp_blocks=4), (96, 96, 96), 2)


def test_what_a_network_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="no psp_blocks with unet"):
        NetworkConfig(psp_blocks=3)
    with pytest.raises(ValueError, match="each of the 4 levels of ahnet"):
        NetworkConfig(name="ahnet", blocks=(1, 1))
    plain = NetworkConfig(name="ahnet", psp_blocks=3).canonical()
    assert NetworkConfig.model_validate(plain).canonical() == plain
