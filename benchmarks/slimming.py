"""What taking channels out saves: inference seconds and file bytes of slimmed networks, beside the dense ones.

python benchmarks/slimming.py [--ratio 0.5] [--models vgg16 preresnet20 ...] [--batch 128] [--quick] [--json OUT]

Channels are those of smallest batch-norm scale over the whole network ("scales"; random ones here: what is measured is
the clock, not the accuracy), or a share of every set of coupled layers, residual streams included ("coupled").
Outputs are checked against the masked network first. Medians, dense and slim in turn.
"""

from __future__ import annotations

import torch
from common import finish, in_turn, options
from safetensors.torch import save
from torch import Tensor, nn

from gebt.models.cnn import VGG, PreResNet, ResNet
from gebt.prune.mask import Mask
from gebt.prune.scores import bn_scale
from gebt.prune.selection import make_mask
from gebt.prune.slim.coupled import coupled_mask
from gebt.prune.slim.slim import masked_channels, slim

MODELS = {
    "vgg16": lambda width, seed: VGG(16, 10, width=width, seed=seed),
    "resnet18": lambda width, seed: ResNet(18, 10, width=width, seed=seed),
    "resnet50": lambda width, seed: ResNet(50, 10, width=width, seed=seed),
    "preresnet20": lambda width, seed: PreResNet(20, 10, width=width, seed=seed),
    "preresnet56": lambda width, seed: PreResNet(56, 10, width=width, seed=seed),
}


def main() -> None:
    """One row a network."""
    parser = options(__doc__ or "")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the channels to take out")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--masks", nargs="+", default=["scales", "coupled"], choices=["scales", "coupled"])
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    width, batch, repeats = (0.1, 4, 1) if arguments.quick else (1.0, arguments.batch, 5)
    rows = []
    for name in arguments.models:
        dense = MODELS[name](width, 0).eval()
        generator = torch.Generator().manual_seed(0)
        for scale in bn_scale(dense):
            parameter = dense.get_parameter(scale)
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)
        x = torch.randn(batch, 3, 32, 32, generator=generator)
        for mask_name in arguments.masks:
            if mask_name == "scales":
                mask = make_mask(bn_scale(dense), ratio=arguments.ratio, allow_empty=True)
            else:
                mask = coupled_mask(dense, ratio=arguments.ratio, example=x[:2])
            rows.append({"model": name, "mask": mask_name, **measured(name, dense, mask, x, repeats)})
            print(rows[-1], flush=True)
    summary = {f"{own['model']}, {own['mask']}": own["times_faster"] for own in rows}
    finish(f"{100 * arguments.ratio:g} % of the channels out, batch {batch}", rows, summary, arguments.json)


def measured(name: str, dense: nn.Module, mask: Mask, x: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of the dense and the slim network in turn, their files, and how far outputs are apart."""
    small = slim(dense, mask, example=x[:2]).eval()
    with torch.no_grad():
        expected = masked_channels(dense, mask).eval()(x[:4])
        gap = float((small(x[:4]) - expected).abs().max() / expected.abs().max())
        if gap > 1e-4:
            raise SystemExit(f"slimming: error: outputs of {name} are {gap:.1e} of the largest apart")
        seconds = in_turn({"dense": lambda: dense(x), "slim": lambda: small(x)}, repeats)
    sizes = [len(save({key: own.contiguous() for key, own in m.state_dict().items()})) for m in (dense, small)]
    return {
        "dense_ms": 1e3 * seconds["dense"],
        "slim_ms": 1e3 * seconds["slim"],
        "times_faster": seconds["dense"] / seconds["slim"],
        "file_of_dense": sizes[1] / sizes[0],
        "output_gap": gap,
    }


if __name__ == "__main__":
    main()
