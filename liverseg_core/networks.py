"""Networks from MONAI by name, with weights that depend on the seed alone."""

import torch
from monai.networks.nets import UNet
from torch import nn

from liverseg_core.config import NetworkConfig
from liverseg_core.store import CLASSES


def build_network(config: NetworkConfig, seed: int = 0) -> nn.Module:
    """Build a network from one CT channel to one logit per class.

    Args:
        config: Which network, and its size.
        seed: Decides the initial weights; the global random state is left as it was.

    Example:
        >>> network = build_network(NetworkConfig(channels=(4, 8)))
        >>> tuple(network(torch.zeros(1, 1, 16, 16, 8)).shape)
        (1, 3, 16, 16, 8)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        network: nn.Module = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=len(CLASSES),
            channels=config.channels,
            strides=(2,) * (len(config.channels) - 1),
            num_res_units=config.residual_units,
            norm=config.norm,
        )
    return network
