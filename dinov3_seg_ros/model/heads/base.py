"""What every segmentation head has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dinov3_seg_ros.model.heads.detail import DetailBranch
from dinov3_seg_ros.support.errors import HeadError, first_of


class Head(nn.Module, ABC):
    """A decoder from feature maps, and the image where it is image-guided, to class logits.

    Subclasses implement `extract`, and end in a 1x1 convolution ``classifier``. A head must be exportable with static
    spatial sizes and a dynamic batch.

    Args:
        in_channels: channels of each feature map.
        strides: input pixels per cell of each map.
        num_classes: output channels.

    Attributes:
        in_channels, strides, num_classes: as given.
        detail: the image-guided branch, or None; see `set_detail`.
        classifier: the last convolution, from the features to one logit for each class.
    """

    classifier: nn.Conv2d

    def __init__(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if not in_channels or len(in_channels) != len(strides):
            raise HeadError(
                f"a head needs one stride for each feature map; got channels {list(in_channels)} and "
                f"strides {list(strides)}"
            )
        if num_classes < 1:
            raise HeadError(f"a head needs at least one class; got num_classes={num_classes}")
        self.in_channels = list(in_channels)
        self.strides = list(strides)
        self.num_classes = num_classes
        self.detail: DetailBranch | None = None

    @property
    def reads_images(self) -> bool:
        """Whether `forward` needs the images beside the maps."""
        return self.detail is not None

    def forward(self, maps: Sequence[torch.Tensor], images: torch.Tensor | None = None) -> torch.Tensor:
        """Compute logits, before any upsampling to the image.

        Args:
            maps: (B, C_i, h_i, w_i) float each, in the order of ``in_channels``.
            images: (B, 3, H, W) normalised float, the input of the backbone; only an image-guided head reads them.

        Returns:
            Logits (B, num_classes, h, w); of an image-guided head (B, num_classes, H / 4, W / 4).

        Raises:
            HeadError: maps of other channels than the head was built for, or no images for an image-guided head.
        """
        self.check_maps(maps)
        features = self.extract(maps)
        logits = self.classify(features)
        if self.detail is None:
            return logits
        if images is None:
            raise HeadError(
                f"this {type(self).__name__} is image-guided (option detail): call it with the maps and the images "
                "(B, 3, H, W) that the backbone was given"
            )
        sharpened: torch.Tensor = self.detail(images, features, logits)
        return sharpened

    @abstractmethod
    def extract(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, h_i, w_i) -> the features (B, C, h, w) that are classified."""

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, C, h, w) -> logits (B, num_classes, h, w)."""
        logits: torch.Tensor = self.classifier(features)
        return logits

    def set_detail(self, detail: bool, feature_channels: int) -> None:
        """Make the head image-guided or not; called by the constructors of heads that have the option ``detail``.

        Args:
            detail: whether the head is image-guided.
            feature_channels: channels of what `extract` returns.

        Raises:
            HeadError: ``detail`` is neither true nor false.
        """
        if not isinstance(detail, bool):
            raise HeadError(f"a head's option detail is true or false, and in a recipe also auto; got {detail!r}")
        self.detail = DetailBranch(feature_channels, self.num_classes) if detail else None

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Multiply all logits by a factor above 0, by scaling the last weights and biases of every branch.

        So a temperature costs nothing at run time.
        """
        for parameter in self._parameters_of_classes().values():
            parameter.mul_(factor)

    @torch.no_grad()
    def weights_for_classes(
        self, tensors: Mapping[str, torch.Tensor], sources: Sequence[int | None]
    ) -> dict[str, torch.Tensor]:
        """The weights of another head in the order of this head's classes, for `load_weights`.

        Args:
            tensors: weights of the other head, by name.
            sources: for each class of this head, its id in the other head; None: the weights that this head has.
        """
        chosen = dict(tensors)
        for name, own in self._parameters_of_classes().items():
            given = tensors.get(name)
            if given is not None and given.shape[1:] == own.shape[1:]:
                chosen[name] = torch.stack(
                    [own[index] if source is None else given[source] for index, source in enumerate(sources)]
                )
        return chosen

    def _parameters_of_classes(self) -> dict[str, nn.Parameter]:
        """The parameters by name whose first axis is that of the classes: of the last layer of every branch."""
        layers = {"classifier": self.classifier}
        if self.detail is not None:
            layers["detail.classifier"] = self.detail.classifier
        return {f"{place}.{name}": own for place, layer in layers.items() for name, own in layer.named_parameters()}

    def check_maps(self, maps: Sequence[torch.Tensor]) -> None:
        """Raise HeadError unless ``maps`` has the number and the channels this head was built for."""
        got = [int(m.shape[1]) for m in maps]
        if got != self.in_channels:
            raise HeadError(
                f"{type(self).__name__} was built for feature maps of {self.in_channels} channels and was given "
                f"{got}; choose the backbone and layers that the head was trained with"
            )

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over all parameters and running statistics, by name.

        Raises:
            HeadError: they are not those of a head of this shape; says what differs. Nothing has been changed.
        """
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        differences = {
            "missing": [name for name in own if name not in given],
            "unexpected": [name for name in given if name not in own],
            "of a wrong shape": [
                f"{name} {given[name]} instead of {shape}"
                for name, shape in own.items()
                if given.get(name, shape) != shape
            ],
        }
        complaints = [f"{len(names)} {what}: {first_of(names)}" for what, names in differences.items() if names]
        if complaints:
            raise HeadError(f"tensors {'; '.join(complaints)}")
        self.load_state_dict(dict(tensors))
