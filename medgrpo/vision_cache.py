"""Features of a frozen vision tower, kept across epochs: each image is seen once in a run, as far as memory allows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from medgrpo.prefix import see
from medgrpo.types import PromptBatch, VisionFeatures


class VisionCache:
    """Keeps features in the memory of the host, by image path, until it is full; nothing is ever dropped.

    (Every image comes once per epoch: dropping the oldest for the newest would drop each just before it is needed.)
    An image's features come out the same in whichever batch it is seen, up to rounding.

    Args:
        max_bytes: of features.
    """

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.features: dict[str, list[Tensor]] = {}
        """Image path -> features [image tokens, H], and the deepstack features after them."""

    @torch.no_grad()
    def features_of(self, model: nn.Module, prompts: PromptBatch) -> VisionFeatures:
        """What ``prefix.see`` says of a batch with pixels; only images that are new go through the tower."""
        paths = [path for record in prompts.records for path in record.images]
        new = [index for index, path in enumerate(paths) if path not in self.features]
        found = dict(zip(new, self._see(model, prompts, new), strict=True)) if new else {}
        device = prompts.input_ids.device
        images = []
        for index, path in enumerate(paths):
            images.append(found[index] if index in found else [part.to(device) for part in self.features[path]])
        for index in new:
            self._keep(paths[index], found[index])
        embeds, *deepstack = (torch.cat(parts) for parts in zip(*images, strict=True))
        return VisionFeatures(embeds, tuple(deepstack))

    @staticmethod
    def _see(model: nn.Module, prompts: PromptBatch, images: list[int]) -> list[list[Tensor]]:
        grid = prompts.image_grid_thw[images]
        pixels = prompts.pixel_values.split(prompts.image_grid_thw.prod(-1).tolist())
        seen = see(model, replace(prompts, pixel_values=torch.cat([pixels[i] for i in images]), image_grid_thw=grid))
        tokens = (grid.prod(-1) // model.model.visual.spatial_merge_size**2).tolist()
        return [list(parts) for parts in zip(*(t.split(tokens) for t in (seen.embeds, *seen.deepstack)), strict=True)]

    def _keep(self, path: str, parts: list[Tensor]) -> None:
        size = sum(part.nbytes for part in parts)
        if path not in self.features and self.num_bytes + size <= self.max_bytes:
            self.features[path] = [part.to("cpu", copy=True) for part in parts]
            self.num_bytes += size
