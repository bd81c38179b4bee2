"""Runs transformers on an exported folder. The only module that imports torch; used by `convert --verify`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration


def transformers_trace(folder: Path, ids: np.ndarray, pixels: np.ndarray, image: Image.Image) -> dict[str, np.ndarray]:
    """Returns the points of `parity.Trace`, float32, channels last.

    ids: int[1, T] with one image token per feature. pixels: float32[1, H, W, 3], the model's input. The result's
    `pixels` are those that transformers' own image processor computes from `image`.
    """
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    points = {}

    def keep(name: str, value: torch.Tensor) -> None:
        points[name] = value.detach().numpy()

    inner = model.model
    patches = next(m for name, m in inner.vision_tower.named_modules() if name.endswith("patch_embedding"))
    patches.register_forward_hook(lambda _, __, out: keep("patch embedding", out.permute(0, 2, 3, 1)))
    inner.multi_modal_projector.register_forward_pre_hook(lambda _, args: keep("selected layer", args[0]))
    inner.multi_modal_projector.register_forward_hook(lambda _, __, out: keep("projector", out))
    inner.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: keep("merged embeddings", kwargs["inputs_embeds"]), with_kwargs=True
    )
    inner.language_model.register_forward_hook(lambda _, __, out: keep("last hidden", out[0]))
    given = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        keep("logits", model(input_ids=torch.tensor(ids).long(), pixel_values=given).logits)
    theirs = processor.image_processor(image, return_tensors="np")["pixel_values"]
    return points | {"pixels": np.asarray(theirs, np.float32).transpose(0, 2, 3, 1)}
