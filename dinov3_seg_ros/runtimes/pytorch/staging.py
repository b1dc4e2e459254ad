"""Host memory from which a GPU reads by itself, used again for each frame."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch

from dinov3_seg_ros.runtimes.pytorch.cuda_graphs import new_event


class _Place(NamedTuple):
    """Page-locked memory, and when the last copy from it is over."""

    memory: torch.Tensor
    is_free: torch.cuda.Event


class Staging:
    """Page-locked memory for batches on their way to a GPU.

    Locking memory anew for each frame took 3 to 4 ms on an H200's machine, longer than the network.

    Args:
        device: the GPU.
    """

    # Frame-sized geometries bring ever new shapes; what is locked is lost to other programs.
    _MOST_SHAPES = 4

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._places: OrderedDict[torch.Size, list[_Place]] = OrderedDict()

    def upload(self, images: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
        """Queue a copy to the GPU; ``images`` may be written to at once.

        Args:
            images: in host memory.
            stream: the current one, on which the copy is queued.
        """
        place = self._take(images)
        place.is_free.synchronize()  # of the frame before the last, so nobody waits
        place.memory.copy_(images)
        uploaded = place.memory.to(self._device, non_blocking=True)
        stream.record_event(place.is_free)
        return uploaded

    def _take(self, images: torch.Tensor) -> _Place:
        """Two places take turns for each shape: one is filled while the GPU may still read the other."""
        if images.shape not in self._places:
            if len(self._places) == self._MOST_SHAPES:
                _, places = self._places.popitem(last=False)
                for place in places:
                    place.is_free.synchronize()
            self._places[images.shape] = [
                _Place(torch.empty_like(images).pin_memory(), new_event(timed=False)) for _ in range(2)
            ]
        self._places.move_to_end(images.shape)
        places = self._places[images.shape]
        places.reverse()
        return places[0]
