"""BERT and its family, from Hugging Face transformers: prunable matrices, heads, checkpoints, reinitialization.

Needs the extra "transformers". Names are those of `BertModel`, alone or inside a model with any head; RoBERTa and
ELECTRA use the same ones. Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT Networks".
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
_INSIDE = re.compile(r"^.*?(?=encoder\.layer\.|pooler\.)")  # the prefix of names inside an encoder


def encoder_of(model: nn.Module) -> tuple[str, Any]:
    """The encoder of a model, and the prefix of its parameter names there.

    Args:
        model: an encoder, or a model that contains one.

    Returns:
        The prefix ("bert." in a model with a head, "" when the model is the encoder itself) and the encoder.

    Raises:
        ValueError: when the model has no encoder of this family.

    Example:
        >>> encoder_of(nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: model Linear (got no BERT encoder), expected BertModel ...
    """
    for name, module in model.named_modules():
        layers = getattr(getattr(module, "encoder", None), "layer", None)
        if isinstance(layers, nn.ModuleList) and len(layers) and hasattr(module, "embeddings"):
            parts = dict(layers[0].named_modules())
            if all(isinstance(parts.get(part), nn.Linear) for part in PRUNED):
                return f"{name}.".lstrip("."), module
    raise ValueError(
        f"model {type(model).__name__} (got no BERT encoder), expected BertModel or a model that holds one: a module "
        f"with embeddings and encoder.layer, every layer with the linear layers {', '.join(PRUNED)}"
    )


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What tickets of BERT prune: six matrices of every layer, and the pooler's where there is one.

    73 tensors of 85,524,480 entries for bert-base. Embeddings, layer norms, biases and heads are not among them.

    Args:
        model: an encoder, or a model that contains one.

    Returns:
        The matrices by parameter name.

    Raises:
        ValueError: as `encoder_of`.
    """
    prefix, encoder = encoder_of(model)
    wanted = [f"encoder.layer.{i}.{part}.weight" for i in range(len(encoder.encoder.layer)) for part in PRUNED]
    parameters = dict(encoder.named_parameters())
    return {prefix + name: parameters[name] for name in (*wanted, POOLER) if name in parameters}


def head_names(model: nn.Module) -> list[str]:
    """Names of the parameters outside the encoder that are not tied to one inside it.

    Args:
        model: a model that contains an encoder.

    Returns:
        The names, in the model's order.
    """
    _, encoder = encoder_of(model)
    inside = {id(parameter) for parameter in encoder.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if id(parameter) not in inside]


def fitted(mask: Mask, model: nn.Module) -> Mask:
    """A mask under the names of a model with another head, or none.

    A pooler that only one of the two has is dropped: it stays dense where the mask has none.

    Args:
        mask: of `prunable` of the model it was drawn from.
        model: the one it shall be applied to.

    Returns:
        The mask over `prunable(model)`.

    Raises:
        ValueError: naming the first tensor that is missing or of another shape.
    """
    weights, (prefix, _) = prunable(model), encoder_of(model)
    names = {_INSIDE.sub("", name): name for name in mask}
    fitting = {}
    for name, weight in weights.items():
        inside = name.removeprefix(prefix)
        if inside == POOLER and inside not in names:
            continue
        if inside not in names or mask[names[inside]].shape != weight.shape:
            got = "no such tensor" if inside not in names else f"shape {tuple(mask[names[inside]].shape)}"
            raise ValueError(f"mask of {name!r} (got {got}), expected one of shape {tuple(weight.shape)}")
        fitting[name] = mask[names.pop(inside)]
    if rest := sorted(names.keys() - {POOLER}):
        raise ValueError(
            f"mask tensor {names[rest[0]]!r} (got none in the model), expected its {len(weights)} matrices"
        )
    return Mask(fitting)


def fresh(config: Any, head: Head = "classes", *, classes: int = 2, seed: int = 0) -> Any:
    """A model of random weights with a head.

    Args:
        config: a transformers config; it is copied.
        head: "classes" (classification of texts) or "words" (masked language modeling).
        classes: number of classes.
        seed: of the weights.

    Returns:
        The model.
    """
    config = copy.deepcopy(config)
    config.num_labels = classes
    kind = getattr(library("transformers"), _AUTO[head])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.from_config(config)


def with_head(model: nn.Module, head: Head = "classes", *, classes: int = 2, seed: int = 0) -> Any:
    """A model with the encoder weights of another one and a fresh head; a pooler that `model` lacks is fresh, too.

    Args:
        model: whose encoder is copied.
        head: "classes" or "words".
        classes: number of classes.
        seed: of the fresh weights.

    Returns:
        The new model, on the device of `model`.
    """
    _, old = encoder_of(model)
    model_with_head = fresh(old.config, head, classes=classes, seed=seed)
    _, new = encoder_of(model_with_head)
    state = old.state_dict()
    names = new.state_dict().keys()
    new.load_state_dict({name: state[name] for name in names if name in state}, strict=False)
    return model_with_head.to(next(old.parameters()).device)


def pretrained(source: str | Path, head: Head = "classes", *, classes: int = 2, seed: int = 0) -> Any:
    """A pretrained model from a local folder or, by name, from the hub; a head the checkpoint lacks is fresh.

    Only safetensors are read, never pickles, and no code of the checkpoint is run. A checkpoint of language modeling
    has no pooler, which is then fresh.

    Args:
        source: folder, or name on the hub.
        head: "classes" or "words".
        classes: number of classes.
        seed: of the fresh weights.

    Returns:
        The model.

    Raises:
        ValueError: for a checkpoint that is missing, lacks weights of the encoder (or, for "words", of the head), or
            has them in other shapes than its config says.
    """
    transformers = library("transformers")
    from safetensors import SafetensorError

    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if head == "classes":
        options["num_labels"] = classes
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error()  # what it would report is refused or expected below
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, report = getattr(transformers, _AUTO[head]).from_pretrained(str(source), **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"checkpoint {source} (got: {reason}), expected a folder, or a name on the hub, with config.json and "
            "model.safetensors"
        ) from error
    finally:
        log.set_verbosity(before)
    prefix, _ = encoder_of(model)
    mismatched = sorted(name if isinstance(name, str) else name[0] for name in report["mismatched_keys"])
    if wrong := [name for name in mismatched if name.startswith(prefix) or head == "words"]:
        raise ValueError(f"checkpoint {source} (got {wrong[0]!r} of another shape), expected the shapes of its config")
    needed = [name for name in sorted(report["missing_keys"]) if name.startswith(prefix) or head == "words"]
    if lacking := [name for name in needed if not name.startswith(f"{prefix}pooler.")]:
        raise ValueError(
            f"checkpoint {source} (got no {lacking[0]!r}), expected all weights of a {type(model).__name__}"
        )
    return model


def reinitialize(model: nn.Module, seed: int) -> None:
    """Gives the encoder fresh weights from its initialization; the head stays.

    Args:
        model: changed in place.
        seed: of the weights.
    """
    _, encoder = encoder_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)(model.config)  # type: ignore[call-arg, unused-ignore]
    encoder.load_state_dict(encoder_of(twin)[1].state_dict())


def reset_head(model: nn.Module, seed: int) -> None:
    """Gives all parameters outside the encoder fresh values; the encoder stays.

    Args:
        model: changed in place.
        seed: of the values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)(model.config).state_dict()  # type: ignore[call-arg, unused-ignore]
    model.load_state_dict({name: twin[name] for name in head_names(model)}, strict=False)


def shuffle_layers(model: nn.Module, seed: int) -> list[int]:
    """Permutes the weights among complete layers, in a random order other than the present one.

    Args:
        model: changed in place.
        seed: of the order.

    Returns:
        For each layer the number of the one whose weights it now has.

    Raises:
        ValueError: for an encoder of one layer.
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
