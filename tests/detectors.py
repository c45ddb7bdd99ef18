"""Tiny detectors with random weights, in the folders that transformers writes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil


def rt_detr(folder: Path, names: Sequence[str], *, side: int = 64) -> Path:
    """An RT-DETR: sigmoid scores, images resized to a square of `side` pixels."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 1, 1]}
    stages = ["stage2", "stage3", "stage4"]
    backbone = RTDetrResNetConfig(**sizes, layer_type="basic", **{"out_features": stages})
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32],
        d_model=32, num_queries=30, decoder_in_channels=[32] * 3, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
        decoder_attention_heads=2, id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    return _saved(
        folder, RTDetrForObjectDetection(config),
        RTDetrImageProcessorPil(size={"height": side, "width": side}),
    )  # fmt: skip


def yolos(folder: Path, names: Sequence[str]) -> Path:
    """A YOLOS: softmax scores, the last logit for "no object", images padded in a batch."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=[64, 64], patch_size=16, num_detection_tokens=20,
        use_mid_position_embeddings=False, id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    processor = YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64})
    return _saved(folder, YolosForObjectDetection(config), processor)


def _saved(folder: Path, model, processor) -> Path:
    with torch.no_grad():  # at their initial values all boxes are alike
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
