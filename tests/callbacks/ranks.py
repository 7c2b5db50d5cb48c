"""Two processes train; both must end with the same mask and the same weights. Not a test: `test_ranks.py` runs it.

torchrun --nproc-per-node 2 tests/callbacks/ranks.py FOLDER, or python tests/callbacks/ranks.py FOLDER, which launches
as torchrun does but forks the processes, so that Lightning is imported once.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from conftest import drawn_from, is_held, make_network, make_task
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed, nn, optim
from torch.distributed.fsdp import fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from gebt import enforce_mask
from gebt.callbacks.core import MaskEnforcer
from gebt.callbacks.lightning import EarlyBirdCallback, TicketCallback
from gebt.prune import EarlyBird, magnitude, prunable_weights
from gebt.prune.enforce import parameters_of
from gebt.prune.schedule import cubic


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = make_network()

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def noisy(model: nn.Module) -> dict[str, Tensor]:
    """Scores that differ from process to process, as those of a batch do."""
    generator = torch.Generator().manual_seed(distributed.get_rank())
    return {
        name: own + torch.rand(own.shape, generator=generator)
        for name, own in magnitude(prunable_weights(model)).items()
    }


def steps(model: nn.Module, optimizer: optim.Optimizer, epochs: int = 2) -> None:
    for _ in range(epochs):
        for x, y in DataLoader(make_task(), 8, sampler=DistributedSampler(make_task(), shuffle=False)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def by_lightning(folder: Path) -> dict[str, Tensor]:
    schedule = partial(cubic, ratio=0.8, begin=0, end=5)
    bird = EarlyBirdCallback(ratio=0.5, scores=noisy, detector=EarlyBird(threshold=2.0, window=3))
    ticket = TicketCallback(schedule=schedule, scores=noisy, every=2)
    module = Module()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=6,
        callbacks=[bird, ticket],
        log_every_n_steps=1,
        **quiet,
    )
    trainer.fit(module, DataLoader(make_task(), 8))
    assert trainer.world_size == 2
    assert (bird.epoch_drawn, trainer.global_step) == (4, 8)
    assert bird.mask is not None
    assert ticket.mask is not None
    assert (ticket.mask.kept, is_held(module, ticket.mask)) == (14, True)
    return {"bird": bird.mask.flat(), "ticket": ticket.mask.flat(), **dict(module.named_parameters())}


def by_hand() -> dict[str, Tensor]:
    """DistributedDataParallel around a compiled network, by one line."""
    net = make_network()
    mask, names = drawn_from(net), list(net.state_dict())
    model = DistributedDataParallel(torch.compile(net, backend="eager"))
    before = list(model.state_dict())
    optimizer = optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    enforce_mask(model, mask, optimizer)
    steps(model, optimizer)
    assert is_held(net, mask)
    assert (list(net.state_dict()), list(model.state_dict())) == (names, before)
    return {f"ddp.{name}": own for name, own in net.named_parameters()}


def by_shards() -> dict[str, Tensor]:
    """FSDP, whose parameters are in part in each process; five rows do not fall apart evenly."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model.load_state_dict(
        {
            name: torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
            for name, own in model.state_dict().items()
        }
    )
    fully_shard(model)
    optimizer = optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    ticket = MaskEnforcer(schedule=lambda step: 0.5)
    ticket.begin(model, [optimizer], 0)
    steps(model, optimizer)
    assert ticket.mask is not None
    whole = {name: own.full_tensor() for name, own in model.named_parameters()}  # type: ignore[attr-defined]
    pruned = [whole[name][~kept] for name, kept in ticket.mask.items()]
    assert not torch.cat(pruned).any()
    assert all(own.any() for own in whole.values())
    assert sum(own.numel() for own in pruned) == 17
    assert parameters_of(model, ticket.mask)["0.weight"].to_local().shape[0] < 5  # type: ignore[operator]
    return {f"fsdp.{name}": own for name, own in whole.items()}


def work(folder: str) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = by_lightning(Path(folder))  # which makes the process group
    found |= by_hand() | by_shards()
    torch.save(
        {name: own.detach().clone() for name, own in found.items()}, Path(folder) / f"{distributed.get_rank()}.pt"
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        work(sys.argv[1])
    else:
        settings = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1,
        )  # fmt: skip
        elastic_launch(settings, work)(sys.argv[1])
