"""BERT and its family, from Hugging Face transformers: what of it is pruned, rewound, shuffled and loaded.

Needs the extra "transformers". Names are those of `BertModel`, alone or inside a model with a head of any kind; RoBERTa
and ELECTRA bear the same ones. Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT Networks".
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gebt.data.word_pieces import library
from gebt.prune.mask import Mask

# Matrices of a layer that are pruned, in the order of its parameters; after them the pooler's.
PRUNED = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip
POOLER = "pooler.dense.weight"
Head = Literal["classes", "words"]
_AUTO = {"classes": "AutoModelForSequenceClassification", "words": "AutoModelForMaskedLM"}
_INSIDE = re.compile(r"^.*?(?=encoder\.layer\.|pooler\.)")  # what stands before the names inside an encoder


def encoder_of(model: nn.Module) -> tuple[str, Any]:
    """The encoder and the prefix of its names in the model: "bert." of a model with a head, "" when it is the model.

    Raises `ValueError` telling what is expected when the model has no encoder of this family.
    """
    for name, module in model.named_modules():
        layers = getattr(getattr(module, "encoder", None), "layer", None)
        if isinstance(layers, nn.ModuleList) and len(layers) and hasattr(module, "embeddings"):
            own = dict(layers[0].named_modules())
            if all(isinstance(own.get(part), nn.Linear) for part in PRUNED):
                return f"{name}.".lstrip("."), module
    raise ValueError(
        f"model {type(model).__name__} (got no BERT encoder), expected BertModel or a model that holds one: a module "
        f"with embeddings and encoder.layer, every layer with the linear layers {', '.join(PRUNED)}"
    )


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What tickets of BERT prune: six matrices of every layer, and the pooler's where there is one.

    73 tensors of 85,524,480 entries for bert-base. Embeddings, layer norms, biases and all heads are not among them.
    Raises as `encoder_of`.
    """
    prefix, encoder = encoder_of(model)
    wanted = [f"encoder.layer.{i}.{part}.weight" for i in range(len(encoder.encoder.layer)) for part in PRUNED]
    parameters = dict(encoder.named_parameters())
    return {prefix + name: parameters[name] for name in (*wanted, POOLER) if name in parameters}


def head_names(model: nn.Module) -> list[str]:
    """Names of all parameters outside the encoder that are not tied to one of it."""
    _, encoder = encoder_of(model)
    inside = {id(parameter) for parameter in encoder.parameters()}
    return [name for name, own in model.named_parameters(remove_duplicate=False) if id(own) not in inside]


def fitted(mask: Mask, model: nn.Module) -> Mask:
    """The mask under the names of a model with another head, or none.

    A pooler that only one of the two has is left out: it stays whole where the mask has none. Raises `ValueError`
    naming the first tensor that is missing or of another shape.
    """
    weights, (prefix, _) = prunable(model), encoder_of(model)
    own = {_INSIDE.sub("", name): name for name in mask}
    found = {}
    for name, weight in weights.items():
        inside = name.removeprefix(prefix)
        if inside == POOLER and inside not in own:
            continue
        if inside not in own or mask[own[inside]].shape != weight.shape:
            got = "no such tensor" if inside not in own else f"shape {tuple(mask[own[inside]].shape)}"
            raise ValueError(f"mask of {name!r} (got {got}), expected one of shape {tuple(weight.shape)}")
        found[name] = mask[own.pop(inside)]
    if rest := sorted(own.keys() - {POOLER}):
        raise ValueError(f"mask tensor {own[rest[0]]!r} (got none in the model), expected its {len(weights)} matrices")
    return Mask(found)


def fresh(config: Any, head: Head = "classes", *, classes: int = 2, seed: int = 0) -> Any:
    """A model of random weights: for classification of texts, or with the head of masked language modelling."""
    config = copy.deepcopy(config)
    config.num_labels = classes
    kind = getattr(library("transformers"), _AUTO[head])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.from_config(config)


def with_head(model: nn.Module, head: Head = "classes", *, classes: int = 2, seed: int = 0) -> Any:
    """A model with the encoder's weights of `model` and a fresh head; a pooler that `model` lacks is fresh, too."""
    _, old = encoder_of(model)
    found = fresh(old.config, head, classes=classes, seed=seed)
    _, new = encoder_of(found)
    state = old.state_dict()
    names = new.state_dict().keys()
    new.load_state_dict({name: state[name] for name in names if name in state}, strict=False)
    return found.to(next(old.parameters()).device)


def pretrained(source: str | Path, head: Head = "classes", *, classes: int = 2, seed: int = 0) -> Any:
    """A pretrained model from a local folder or, by name, from the hub, with a head that is fresh where it has none.

    Only safetensors are read, never pickles, and no code of the checkpoint is run. A checkpoint of language modelling
    has no pooler, which is then fresh. Raises `ValueError` for one that is missing, lacks weights of the encoder (or,
    for "words", of the head), or has them in other shapes than its config says.
    """
    transformers = library("transformers")
    from safetensors import SafetensorError

    given: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if head == "classes":
        given["num_labels"] = classes
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error()  # what it would report is refused or expected below
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, told = getattr(transformers, _AUTO[head]).from_pretrained(str(source), **given)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"checkpoint {source} (got: {reason}), expected a folder, or a name on the hub, with config.json and "
            "model.safetensors"
        ) from error
    finally:
        log.set_verbosity(before)
    prefix, _ = encoder_of(model)
    mismatched = sorted(name if isinstance(name, str) else name[0] for name in told["mismatched_keys"])
    if wrong := [name for name in mismatched if name.startswith(prefix) or head == "words"]:
        raise ValueError(f"checkpoint {source} (got {wrong[0]!r} of another shape), expected the shapes of its config")
    needed = [name for name in sorted(told["missing_keys"]) if name.startswith(prefix) or head == "words"]
    if lacking := [name for name in needed if not name.startswith(f"{prefix}pooler.")]:
        raise ValueError(
            f"checkpoint {source} (got no {lacking[0]!r}), expected all weights of a {type(model).__name__}"
        )
    return model


def reinitialize(model: nn.Module, seed: int) -> None:
    """Gives the encoder fresh weights of its own initialization; the head stays."""
    _, encoder = encoder_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)(model.config)  # type: ignore[call-arg, unused-ignore]
    encoder.load_state_dict(encoder_of(twin)[1].state_dict())


def reset_head(model: nn.Module, seed: int) -> None:
    """Gives all parameters outside the encoder fresh values; the encoder stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)(model.config).state_dict()  # type: ignore[call-arg, unused-ignore]
    model.load_state_dict({name: twin[name] for name in head_names(model)}, strict=False)


def shuffle_layers(model: nn.Module, seed: int) -> list[int]:
    """Puts the weights of whole layers into one random order, never the given one; returns it.

    Raises `ValueError` for an encoder of one layer.
    """
    layers = encoder_of(model)[1].encoder.layer
    if len(layers) < 2:
        raise ValueError(f"layers (got {len(layers)}), expected at least 2 to be shuffled")
    generator = torch.Generator().manual_seed(seed)
    order = list(range(len(layers)))
    while order == sorted(order):
        order = torch.randperm(len(layers), generator=generator).tolist()
    states = [copy.deepcopy(layer.state_dict()) for layer in layers]
    for layer, place in zip(layers, order, strict=True):
        layer.load_state_dict(states[place])
    return order
