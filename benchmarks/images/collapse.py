"""Which scores empty a layer at initialization, and when: SynFlow beside magnitude, SNIP, GraSP and random masks.

python benchmarks/images/collapse.py [--model vgg16] [--width 1] [--data cifar10] [--densities 0.1 0.01 0.001 0.0001]
    [--rounds 100] [--init kaiming|ours] [--seed 0] [--quick] [--json OUT] [--data-root FOLDER]

Tanaka et al. 2020, section 4: a layer collapses when its weights are all gone while others' are left. "kaiming":
weights normal with std sqrt(2 / fan in), as in that paper; "ours": those of `gebt.models`. `density` is as measured.
`conserved`: how far the layers' sums of SynFlow's scores are apart, over the largest, on the network without
normalization between, where theory says that they are equal.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options

from gebt.data.images import Images, load_images
from gebt.models.vision_registry import image_network
from gebt.prune.mask import Mask
from gebt.prune.saliency import grasp, snip
from gebt.prune.scores import magnitude, prunable_weights, random
from gebt.prune.selection import make_mask
from gebt.prune.synflow import synflow, synflow_mask
from gebt.recipes.at_init import few


def main() -> None:
    """One row a score and density."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.01, 0.001, 0.0001])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--init", choices=["kaiming", "ours"], default="kaiming")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(model="preresnet20", width=0.25, data="digits", rounds=10, densities=[0.1, 0.001])
    torch.set_num_threads(arguments.threads)
    images = few(load_images(arguments.data, "test", arguments.data_root), arguments.seed)
    model = image_network(
        arguments.model, images.shape, len(images.classes), width=arguments.width, seed=arguments.seed
    )
    if arguments.init == "kaiming":
        start_by_fan_in(model, arguments.seed)
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    rows: list[dict[str, Any]] = []
    scores = one_shot(model, images, arguments.seed)
    for density in arguments.densities:
        start = time.perf_counter()
        example = images.pixels[:1].float()
        mask = synflow_mask(model, example, ratio=1 - density, rounds=arguments.rounds, seed=arguments.seed)
        rows.append(row("synflow", density, mask, time.perf_counter() - start))
        for name, (own, seconds) in scores.items():
            rows.append(row(name, density, make_mask(own, ratio=1 - density, allow_empty=True), seconds))
        print(*rows[-1 - len(scores) :], sep="\n", flush=True)
    summary: dict[str, Any] = {"weights": total, "conserved": conserved(model, images)}
    for name in ("synflow", *scores):
        whole = [own["density"] for own in rows if own["score"] == name and not own["emptied_layers"]]
        summary[f"{name}: smallest density with all layers alive"] = min(whole, default=1.0)
    finish(
        f"{arguments.model} x {arguments.width:g}, {arguments.init} start, {arguments.data}",
        rows,
        summary,
        arguments.json,
    )


def start_by_fan_in(model: nn.Module, seed: int) -> None:
    """Draws all weights anew. He et al. 2015, mode "fan in"."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in prunable_weights(model).values():
            nn.init.kaiming_normal_(weight, generator=generator)


def one_shot(model: nn.Module, images: Images, seed: int) -> dict[str, tuple[dict[str, torch.Tensor], float]]:
    """Scores of one pass each, and seconds."""
    mean, std = images.statistics()
    batches = list(images.batches(len(images), mean=mean, std=std))
    weights = prunable_weights(model)
    ways = {
        "magnitude": lambda: magnitude(weights),
        "snip": lambda: snip(model, batches),
        "grasp": lambda: grasp(model, batches),
        "random": lambda: random(weights, torch.Generator().manual_seed(seed)),
    }
    found = {}
    for name, way in ways.items():
        start = time.perf_counter()
        found[name] = (way(), time.perf_counter() - start)
    return found


def row(name: str, density: float, mask: Mask, seconds: float) -> dict[str, Any]:
    """What a mask leaves of the layers."""
    left = [int(kept.sum()) for kept in mask.values()]
    exact = mask.size - int(mask.size * (1 - density) + 1e-9)
    emptied = sum(not own for own in left)
    return {
        "score": name,
        "asked": density,
        "density": mask.density,
        "off_by": mask.kept - exact,
        "emptied_layers": emptied,
        "of_layers": len(left),
        "fewest_in_a_layer": min(left),
        "seconds": seconds,
    }


def conserved(model: nn.Module, images: Images) -> float:
    """The largest relative gap of the layers' sums from the first's, in a chain of convolutions without biases."""
    chain = copy.deepcopy(model)
    for parent in list(chain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for name, parameter in chain.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    sums = [float(score.sum()) for score in synflow(chain, images.pixels[:1].float()).values()]
    # Branches share the flow between them: layers side by side sum to it together, so only chains are compared.
    alone = sums if not any(hasattr(module, "downsample") for module in chain.modules()) else [sums[0], sums[-1]]
    return max(abs(own - alone[0]) for own in alone) / max(alone)


if __name__ == "__main__":
    main()
