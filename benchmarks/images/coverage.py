"""Which architectures channels can be taken out of, beside Torch-Pruning and torch.nn.utils.prune.

python benchmarks/images/coverage.py [--ratio 0.5] [--models "VGG-16" ...] [--quick] [--json OUT]

The share `--ratio` of the channels, heads and units of every set of coupled layers goes, those of smallest magnitude.
`removed`: share of the parameters. `gap`: largest difference of outputs from those of the same network with the same
channels zero (rows, scales and shifts), of the largest output. Torch-Pruning (`pip install 'gebt[peers]'`):
`MagnitudePruner`, local, classifiers ignored, heads named, as its documentation says; whole heads or their widths,
tables or not, whichever runs and takes out most. torch.nn.utils.prune makes masks: it removes nothing anywhere.
Networks are untrained, their norms random. `--quick` changes nothing: all of it takes seconds.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

sys.path.insert(0, str(Path(__file__).parents[1]))
from architectures import ARCHITECTURES, drawn
from common import finish, options

from gebt.prune.slim.coupled import coupled_mask
from gebt.prune.slim.slim import masked_channels, slim


def size(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, of the largest entry."""
    return float((one - other).abs().max() / other.abs().max())


def ours(model: nn.Module, x: Tensor, ratio: float) -> dict[str, Any]:
    """Channels taken out by `slim`."""
    mask = coupled_mask(model, ratio=ratio, example=x)
    small = slim(model, mask, example=x)
    with torch.no_grad():
        difference = gap(small(x), masked_channels(model, mask)(x))
    small.train()(x).sum().backward()
    return {"ours_removed": 1 - size(small) / size(model), "ours_gap": difference}


def theirs(model: nn.Module, x: Tensor, ratio: float) -> dict[str, Any]:
    """Channels taken out by Torch-Pruning, by the settings that take out most; what it says where all of them fail."""
    failed, found = "", []
    for whole_heads in (True, False):
        for tables in (False, True):
            try:
                found.append(_theirs(model, x, ratio, whole_heads, tables))
            except Exception as error:  # whatever breaks inside of it or of the network that it leaves
                failed = failed or repr(error).splitlines()[0][:60]
    best = max(found, key=lambda row: row["tp_removed"], default=None)
    return best or {"tp_removed": None, "tp_gap": None, "tp": failed}


def _theirs(model: nn.Module, x: Tensor, ratio: float, whole_heads: bool, tables: bool) -> dict[str, Any]:
    small, masked = copy.deepcopy(model), copy.deepcopy(model)
    pruner = _pruner(small, x, ratio, whole_heads, tables)
    pruner.step()
    for module in small.modules():
        if hasattr(module, "heads"):  # its documentation: sizes in the code are the user's to set
            module.heads = pruner.num_heads[module.q]
            module.head_dim = module.q.out_features // module.heads
    exact = _zero(masked, _pruner(masked, x, ratio, whole_heads, tables))
    with torch.no_grad():
        out = small(x)
        difference = gap(out, masked(x)) if exact else None
    label = "runs, tables ignored" if tables else "runs"
    return {"tp_removed": 1 - size(small) / size(model), "tp_gap": difference, "tp": label}


def _pruner(model: nn.Module, x: Tensor, ratio: float, whole_heads: bool, tables: bool) -> Any:
    import torch_pruning

    ignored = [_classifier(model)]
    ignored += [module for module in model.modules() if isinstance(module, nn.Embedding) and tables]
    heads: dict[nn.Module, int] = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    for module in model.modules():
        if hasattr(module, "heads"):
            heads |= {getattr(module, part): module.heads for part in "qkv"}
    whole = whole_heads and bool(heads)
    return torch_pruning.pruner.MagnitudePruner(
        model, x, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=ratio,
        ignored_layers=ignored, num_heads=heads, prune_num_heads=whole, prune_head_dims=not whole,
        head_pruning_ratio=ratio if whole else 0.0,
    )  # fmt: skip


def _classifier(model: nn.Module) -> nn.Module:
    """The layer that makes the outputs, which keeps its own."""
    if isinstance(model, nn.Sequential):
        return model[-1]
    return next(getattr(model, name) for name in ("head", "fc", "classifier") if hasattr(model, name))


def _zero(model: nn.Module, pruner: Any) -> bool:
    """Makes the channels that Torch-Pruning chooses zero where they are made or normalized.

    False where they are not slices of one tensor each, as in recurrent layers and `nn.MultiheadAttention`.
    """
    layers = set(model.modules())
    chosen = [(dep, list(idxs)) for group in pruner.step(interactive=True) for dep, idxs in group]
    with torch.no_grad():
        for dep, idxs in chosen:
            layer = dep.target.module
            if layer not in layers or not pruner.DG.is_out_channel_pruning_fn(dep.handler):
                continue
            if isinstance(layer, nn.MultiheadAttention | nn.LSTM | nn.GRU):
                return False
            along = 1 if isinstance(layer, nn.Embedding | nn.ConvTranspose2d) else 0
            layer.weight.transpose(0, along)[idxs] = 0
            if getattr(layer, "bias", None) is not None:
                layer.bias[idxs] = 0
    return True


def masks_alone(model: nn.Module, x: Tensor, ratio: float) -> dict[str, Any]:
    """`torch.nn.utils.prune`: rows of weights pruned and made permanent."""
    small = copy.deepcopy(model)
    for module in small.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            prune.ln_structured(module, "weight", ratio, n=2, dim=0)
            prune.remove(module, "weight")
    small(x)
    return {"torch_removed": 1 - size(small) / size(model)}


def main() -> None:
    """One row an architecture."""
    parser = options(__doc__ or "")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the channels to take out")
    parser.add_argument("--models", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    peer = importlib.util.find_spec("torch_pruning") is not None
    if not peer:
        print("torch-pruning is missing: its columns are empty; pip install 'gebt[peers]'")
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        model, x = drawn(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the peer says of parameters that it does not know
            row = {"architecture": name, "parameters": size(model), **ours(model, x, arguments.ratio)}
            row |= theirs(model, x, arguments.ratio) if peer else {"tp_removed": None, "tp_gap": None, "tp": "missing"}
            row |= masks_alone(model, x, arguments.ratio)
        rows.append(row)
        print(row, flush=True)
    summary = {"rows": len(rows), "ours within 1e-5": sum(row["ours_gap"] <= 1e-5 for row in rows)}
    if peer:
        summary["Torch-Pruning runs"] = sum(row["tp"].startswith("runs") for row in rows)
        summary["Torch-Pruning within 1e-5"] = sum(row["tp_gap"] is not None and row["tp_gap"] <= 1e-5 for row in rows)
    finish(f"{100 * arguments.ratio:g} % of the channels out", rows, summary, arguments.json)


if __name__ == "__main__":
    main()
