"""The options of a run over images: set by the user, or completed from the data and the network."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, get_args

from gebt.data.images import Images, Part, load_images
from gebt.experiments.option_groups import DATA, NETWORK, RUN
from gebt.graph.graph import GraphError
from gebt.models.vision_registry import image_network
from gebt.train.images import ImageSettings

# Defaults of the training: for LeNet as Frankle & Carbin 2019, for the others as You et al. 2020.
_LENET: dict[str, Any] = {"epochs": 20, "batch": 60, "learning_rate": 1.2e-3, "crop": 0, "flip": False}
_DIGITS: dict[str, Any] = {"epochs": 30, "batch": 64, "learning_rate": 0.05, "crop": 1, "flip": False}
_MNIST: dict[str, Any] = {"epochs": 30, "batch": 128, "learning_rate": 0.1, "crop": 2, "flip": False}
_OTHERS: dict[str, Any] = {"epochs": 160, "batch": 128, "learning_rate": 0.1, "crop": 4, "flip": True}


# Decoding CIFAR's files takes as long as some trainings; all seeds share what was read.
_loaded = lru_cache(maxsize=2)(load_images)


@dataclass(frozen=True)
class ImageOptions:
    """Options that all commands for images share.

    Attributes:
        data: digits (embedded), mnist, cifar10, cifar100, or a folder with train and test in it: each a folder, or a
            .tar or .tar.gz archive, with one folder of images a class.
        data_root: Folder of the raw data; default: $GEBT_DATA.
        images: Train on so many images, drawn by seed; default: all.
        crop: Pixels that a training image may be moved.
        flip: Mirror half of the training images.
        model: lenet, vgg11, vgg16, resnet18, resnet50, preresnet20, preresnet56 or preresnet101.
        width: Factor on the number of channels of every layer.
        epochs: Epochs of a full training.
        batch: Images of an optimizer step.
        learning_rate: Learning rate of the first epochs; a tenth after half and after three quarters of them (lenet:
            constant, Adam).
        seeds: Number of seeds, from 0; each has its start weights and its order of images.
        threads: CPU threads; default: torch's choice.
    """

    data: Annotated[str, DATA] = "digits"
    model: Annotated[str | None, NETWORK] = None
    width: Annotated[float | None, NETWORK] = None
    images: Annotated[int | None, DATA] = None
    epochs: Annotated[int | None, NETWORK] = None
    batch: Annotated[int | None, NETWORK] = None
    learning_rate: Annotated[float | None, NETWORK] = None
    crop: Annotated[int | None, DATA] = None
    flip: Annotated[bool | None, DATA] = None
    seeds: Annotated[int, RUN] = 1
    threads: Annotated[int | None, RUN] = None
    data_root: Annotated[Path | None, DATA] = None

    def resolved(self, model: str) -> ImageOptions:
        """The same options, completed and checked.

        Args:
            model: the network where the options name none.

        Returns:
            Options that are all set, but those that have no default.

        Raises:
            ValueError: for numbers below 1.

        Example:
            >>> options = ImageOptions().resolved("lenet")
            >>> options.model, options.epochs, options.batch, options.flip
            ('lenet', 20, 60, False)
        """
        name = self.model or model
        small = self.data in ("digits", "mnist")
        by_data = {"digits": _DIGITS, "mnist": _MNIST}.get(self.data, _OTHERS)
        filled = {"width": 0.5 if self.data == "digits" and name != "lenet" else 1.0, **by_data}
        filled |= {**_LENET, "crop": 0 if small else 4, "flip": not small} if name == "lenet" else {}
        missing = {key: value for key, value in filled.items() if getattr(self, key) is None}
        full = dataclasses.replace(self, model=name, **missing)
        for flag in ("images", "seeds", "threads"):
            value = getattr(full, flag)
            if value is not None and value < 1:
                raise ValueError(f"--{flag} (got {value}), expected at least 1")
        full.settings()
        return full

    def settings(self) -> ImageSettings:
        """Settings of the training, of resolved options."""
        return ImageSettings(**self.training())

    def training(self) -> dict[str, Any]:
        """The same as a mapping, for recipes whose settings have more."""
        assert self.epochs is not None
        shared = {name: getattr(self, name) for name in ("epochs", "batch", "learning_rate", "crop", "flip")}
        if self.model == "lenet":
            return {**shared, "optimizer": "adam", "weight_decay": 0.0, "milestones": ()}
        return {**shared, "milestones": (self.epochs // 2, 3 * self.epochs // 4)}

    def parts(self, seed: int) -> tuple[Images, Images]:
        """Images for training and for testing.

        Args:
            seed: draws which images are trained on, where not all are.

        Returns:
            The two sets.

        Raises:
            GraphError: where their classes or sizes differ.
        """
        train, test = (_loaded(self.data, part, self.data_root) for part in get_args(Part))
        if (train.classes, train.pixels.shape[1:]) != (test.classes, test.pixels.shape[1:]):
            sizes = " and ".join(
                f"{len(part.classes)} classes of {tuple(part.pixels.shape[1:])}" for part in (train, test)
            )
            raise GraphError(f"images of {self.data} (got {sizes}), expected one kind for train and test")
        if self.images is not None and self.images < len(train):
            train, _ = train.split(self.images / len(train), seed)
        return train, test

    def network(self, images: Images, seed: int) -> Any:
        """The network for these images, with start weights of a seed."""
        return image_network(
            str(self.model), images.shape, len(images.classes), width=float(self.width or 1), seed=seed
        )

    def to_json(self) -> str:
        """These options as a configuration file that `--config` reads."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return json.dumps({name: value for name, value in values.items() if value is not None}, indent=1) + "\n"
