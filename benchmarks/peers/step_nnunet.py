"""nnU-Net's own training step, with its loss and its optimiser, on a network of ours.

    python step_nnunet.py REQUEST

REQUEST is JSON: `file` with the network's class `name`, its `arguments`, `patch_size`, `batch_size`, `steps`,
`device`, `compile`. Prints one line of JSON.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from step_meter import measure


def main(request: dict[str, Any]) -> None:
    """Print what a step costs."""
    torch.manual_seed(0)
    trainer = nnUNetTrainer.__new__(nnUNetTrainer)  # what it takes to train a step, and no dataset
    trainer.device = torch.device(request["device"])
    on_gpu = trainer.device.type == "cuda"
    torch.backends.cudnn.benchmark = on_gpu  # as its command line does
    trainer.network = build(request).to(trainer.device)
    trainer.initial_lr, trainer.weight_decay, trainer.num_epochs = 1e-2, 3e-5, 1000
    trainer.grad_scaler = torch.amp.GradScaler("cuda") if on_gpu else None

    size, batch = request["patch_size"], request["batch_size"]
    data = torch.randn(batch, 1, *size)
    label = torch.randint(0, 3, (batch, 1, *size)).float()
    with torch.no_grad():
        outputs = trainer.network(data.to(trainer.device))
    deep = isinstance(outputs, list)
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    trainer.loss = DC_and_CE_loss(
        dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss
    )
    target: Any = label
    if on_gpu and request["compile"]:
        trainer.network = torch.compile(trainer.network)
        trainer.loss.dc = torch.compile(trainer.loss.dc)
    if deep:
        weights = np.array([0.5**i for i in range(len(outputs))])
        trainer.loss = DeepSupervisionWrapper(trainer.loss, weights / weights.sum())
        target = [label[:, :, :: 2**i, :: 2**i, :: 2**i] for i in range(len(outputs))]
    trainer.optimizer, _ = trainer.configure_optimizers()
    cost = measure(
        lambda: trainer.train_step({"data": data, "target": target}), request["steps"], trainer.device
    )
    print(json.dumps(cost))


def build(request: dict[str, Any]) -> torch.nn.Module:
    """The network, from a file that needs torch alone."""
    module = types.ModuleType("network")
    exec(Path(request["file"]).read_text(), module.__dict__)
    network: torch.nn.Module = getattr(module, request["name"])(**request["arguments"])
    return network


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
