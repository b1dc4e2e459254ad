"""A frozen backbone, with or without a head, that looks at single images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.manifest import InputSection
from dinov3_seg_ros.frames.classes import ClassesSection
from dinov3_seg_ros.frames.preprocessing import check_geometry, fill_canvas, place
from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.heads import Head
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.model.pretrained.normalisation import IMAGENET
from dinov3_seg_ros.model.weights import load_backbone
from training.evaluation.inference import Window, sample


@dataclass(frozen=True)
class Look:
    """What a network sees in one image.

    Attributes:
        maps: (C_i, h_i, w_i) float of each layer, without the padding around the frame.
        logits: (K, h, w) float, likewise; None without a head.
    """

    maps: list[Tensor]
    logits: Tensor | None = None


class Network:
    """Maps of a frozen backbone, and logits of a head, of one image after the other.

    Args:
        backbone: frozen, in evaluation mode.
        head: in evaluation mode; None: maps alone.
        network_input: how an image becomes the network input.
        classes: of the head; None without one.

    Attributes:
        network_input, classes: as given.

    Raises:
        ParameterError: the network size does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head | None,
        network_input: InputSection,
        classes: ClassesSection | None = None,
    ) -> None:
        check_geometry(network_input.geometry, network_input.network_size, backbone.patch_multiple)
        self.network_input, self.classes = network_input, classes
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._backbone = backbone.to(self._device)
        self._head = None if head is None else head.to(self._device)
        self._normalise = Normalise(network_input.mean, network_input.std).to(self._device)

    @classmethod
    def of_bundle(cls, path: str | Path) -> Network:
        """Backbone and head of a bundle.

        Raises:
            BundleError, BackboneError: it cannot be loaded.
        """
        bundle = load_bundle(path)
        return cls(bundle.load_backbone(), bundle.load_head(), bundle.manifest.input, bundle.manifest.classes)

    @classmethod
    def of_backbone(cls, source: str, network_size: tuple[int, int]) -> Network:
        """The last layer of a backbone, without a head; images are letterboxed.

        Args:
            source: see `dinov3_seg_ros.model.weights.load_backbone`.
            network_size: (height, width), pixels; rounded to what the backbone takes.

        Raises:
            BackboneError: it cannot be loaded.
        """
        backbone = load_backbone(source)
        mean, std = backbone.normalisation or IMAGENET
        multiple = backbone.patch_multiple
        height, width = (max(round(side / multiple), 1) * multiple for side in network_size)
        return cls(backbone, None, InputSection(network_size=(height, width), geometry="letterbox", mean=mean, std=std))

    @torch.inference_mode()
    def look(self, image: np.ndarray) -> Look:
        """Compute maps and logits of an image.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it is not.
        """
        wanted, height, width = self.network_input, image.shape[0], image.shape[1]
        placement = place((height, width), wanted.geometry, wanted.network_size, self._backbone.patch_multiple)
        canvas = np.empty((*placement.canvas_size, 3), np.uint8)
        fill_canvas(image, placement, wanted.mean, canvas)
        images = self._normalise(torch.from_numpy(canvas[None]).to(self._device))
        maps = self._backbone(images)
        seen = [without_padding(found, placement.window(tuple(found.shape[-2:]))) for found in maps]
        if self._head is None:
            return Look(seen)
        logits = self._head(maps, images).float()
        return Look(seen, without_padding(logits, placement.window(tuple(logits.shape[-2:]))))


def without_padding(found: Tensor, window: Window) -> Tensor:
    """The cells of a map (1, C, h, w) that a frame covers, (C, h', w') float; see `Placement.window`."""
    found = found.float()
    whole = (0.0, 0.0, float(found.shape[-2]), float(found.shape[-1]))
    if window != whole:
        found = sample(found, window, (max(round(window[2]), 1), max(round(window[3]), 1)))
    return found[0]
