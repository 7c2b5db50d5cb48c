"""What holding a mask costs a training step: `gebt.enforce_mask` and `torch.nn.utils.prune` beside the bare step.

python benchmarks/images/overhead.py [--models preresnet20 resnet18] [--batch 128] [--steps 30] [--ratio 0.9]
    [--quick] [--json OUT]

One step is forward, backward and SGD with momentum on a batch of 3 x 32 x 32. Each network is stepped in turn with the
others; medians. `zeroing_ms` is the holding alone, in an optimizer that has no gradients to step with, and
`zeroing_share` its share of the bare step; the last columns are other ways to zero the same entries.
`extra_bytes` is what the state dict grows by. The pruned entries are checked to be zero after the last step.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, in_turn, options

from gebt import Mask, enforce_mask, magnitude, make_mask
from gebt.models.cnn import PreResNet, ResNet
from gebt.prune.scores import prunable_weights

MODELS: dict[str, Callable[[float], nn.Module]] = {
    "preresnet20": lambda width: PreResNet(20, 10, width=width),
    "resnet18": lambda width: ResNet(18, 10, width=width),
}
ZEROINGS = 200


def main() -> None:
    """One row a network."""
    parser = options(__doc__ or "")
    parser.add_argument("--models", nargs="+", default=["preresnet20"], choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ratio", type=float, default=0.9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    width, batch, steps = (0.25, 8, 3) if arguments.quick else (1.0, arguments.batch, arguments.steps)
    rows = []
    for name in arguments.models:
        rows.append({"model": name, **measured(MODELS[name](width), batch, steps, arguments.ratio)})
        print(rows[-1], flush=True)
    summary = {f"{own['model']}: share of the step": own["zeroing_share"] for own in rows}
    finish(f"{100 * arguments.ratio:g} % of the weights held at zero, batch {batch}", rows, summary, arguments.json)


def measured(dense: nn.Module, batch: int, steps: int, ratio: float) -> dict[str, Any]:
    """Seconds of a step in each way, and bytes of the state dict."""
    mask = make_mask(magnitude(prunable_weights(dense)), ratio=ratio, scope="layer")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32, generator=generator), torch.randint(10, (batch,), generator=generator)
    networks = {name: copy.deepcopy(dense) for name in ("bare", "enforce_mask", "torch prune")}
    for name, kept in mask.items():
        layer, _, own = name.rpartition(".")
        torch_prune.custom_from_mask(networks["torch prune"].get_submodule(layer), own, kept)
    optimizers = {name: _sgd(network) for name, network in networks.items()}
    enforce_mask(networks["enforce_mask"], mask, optimizers["enforce_mask"])

    def step(name: str) -> None:
        optimizers[name].zero_grad()
        F.cross_entropy(networks[name](x), y).backward()
        optimizers[name].step()

    seconds = in_turn({name: lambda name=name: step(name) for name in networks}, steps)  # type: ignore[misc]
    for name, kept in mask.items():
        if networks["enforce_mask"].get_parameter(name).detach()[~kept].any():
            raise SystemExit(f"overhead: error: pruned entries of {name} are not zero")
    zeroing = in_turn(_zeroings(dense, mask), ZEROINGS if steps > 3 else 3)
    sizes = {name: _bytes(network) for name, network in networks.items()}
    return {
        "weights": mask.size,
        "bare_ms": 1e3 * seconds["bare"],
        "enforce_mask_ms": 1e3 * seconds["enforce_mask"],
        "torch_prune_ms": 1e3 * seconds["torch prune"],
        "zeroing_ms": 1e3 * zeroing["enforce_mask"],
        "zeroing_share": zeroing["enforce_mask"] / seconds["bare"],
        "extra_bytes": sizes["enforce_mask"] - sizes["bare"],
        "torch_prune_extra_bytes": sizes["torch prune"] - sizes["bare"],
        **{f"{name}_ms": 1e3 * own for name, own in zeroing.items() if name != "enforce_mask"},
    }


def _zeroings(dense: nn.Module, mask: Mask) -> dict[str, Callable[[], object]]:
    """Ways to zero the pruned entries, each of a network of its own."""

    def weights() -> list[Tensor]:
        return [copy.deepcopy(dense.get_parameter(name)).detach() for name in mask]

    network = copy.deepcopy(dense)
    idle = _sgd(network)
    enforce_mask(network, mask, idle)
    filled, multiplied, indexed = weights(), weights(), [own.view(-1) for own in weights()]
    pruned, stay = [~kept for kept in mask.values()], [kept.float() for kept in mask.values()]
    entries = [gone.flatten().nonzero().squeeze(1) for gone in pruned]
    return {
        "enforce_mask": idle.step,
        "masked_fill": lambda: [own.masked_fill_(gone, 0) for own, gone in zip(filled, pruned, strict=True)],
        "foreach_mul": lambda: torch._foreach_mul_(multiplied, stay),
        "index_fill": lambda: [own.index_fill_(0, gone, 0) for own, gone in zip(indexed, entries, strict=True)],
    }


def _sgd(network: nn.Module) -> optim.Optimizer:
    return optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def _bytes(network: nn.Module) -> int:
    return sum(own.numel() * own.element_size() for own in network.state_dict().values())


if __name__ == "__main__":
    main()
