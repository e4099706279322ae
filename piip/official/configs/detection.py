"""What is particular to the settings of the official detection configs, by our keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from piip.official.configs.pipeline import IGNORED, steps


def neck_settings(neck: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    """The neck; what has no counterpart is added to unmapped."""
    kinds = {"FPN": "fpn", "ChannelMapper": "channel_mapper"}
    known = {"type", "in_channels", "out_channels", "num_outs", "kernel_size", "act_cfg", "norm_cfg"}
    unmapped += [f"model.neck.{key}" for key in neck if key not in known]
    return {"type": kinds[neck["type"]], "out_channels": neck["out_channels"], "levels": neck["num_outs"]}


def detector_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The head of mmdetection's DINO or MaskRCNN. Raises ValueError for another detector."""
    test = model["test_cfg"]
    if model["type"] == "DINO":
        head = model["bbox_head"]
        transformer, noise = head["transformer"], head["dn_cfg"]["noise_scale"]
        encoder = transformer["encoder"]
        return {
            "type": "dino",
            "num_classes": head["num_classes"],
            "num_queries": head["num_query"],
            "encoder_layers": encoder["num_layers"],
            "decoder_layers": transformer["decoder"]["num_layers"],
            "ffn_dim": encoder["transformerlayers"]["feedforward_channels"],
            "denoising_queries": head["dn_cfg"]["group_cfg"]["num_dn_queries"],
            "label_noise": noise["label"],
            "box_noise": noise["box"],
            "max_detections": test["max_per_img"],
        }
    if model["type"] != "MaskRCNN":
        raise ValueError(f"detector {model['type']}")
    rpn, roi, train = model["rpn_head"], model["roi_head"], model["train_cfg"]
    box, mask, anchors = roi["bbox_head"], roi["mask_head"], rpn["anchor_generator"]
    return {
        "type": "mask_rcnn",
        "num_classes": box["num_classes"],
        "anchor_scale": anchors["scales"][0],
        "anchor_ratios": list(anchors["ratios"]),
        "rpn_batch": train["rpn"]["sampler"]["num"],
        "rpn_pre_nms_train": train["rpn_proposal"]["nms_pre"],
        "rpn_pre_nms_test": test["rpn"]["nms_pre"],
        "rpn_proposals": test["rpn"]["max_per_img"],
        "rpn_nms": test["rpn"]["nms"]["iou_threshold"],
        "roi_batch": train["rcnn"]["sampler"]["num"],
        "fc_channels": box["fc_out_channels"],
        "mask_channels": mask["conv_out_channels"],
        "mask_convs": mask["num_convs"],
        "score_threshold": test["rcnn"]["score_thr"],
        "nms": test["rcnn"]["nms"]["iou_threshold"],
        "max_detections": test["rcnn"]["max_per_img"],
    }


def detection_transforms(pipeline: Sequence[Mapping[str, Any]], unmapped: list[str]) -> dict[str, Any]:
    """The transforms of images with boxes and masks, from mmdetection's steps."""
    result: dict[str, Any] = {}
    for step in steps(pipeline):
        kind = step["type"]
        if kind == "Resize":
            result["resize"] = _scales(step["img_scale"])
        elif kind == "RandomFlip":
            result |= {"flip": step["flip_ratio"]} if step.get("flip_ratio") else {}
        elif kind == "RandomCrop":
            result["crop"] = max(step["crop_size"])
        elif kind == "Pad":
            result["pad_divisor"] = step["size_divisor"]
        elif kind == "AutoAugment":
            plain, zoomed = step["policies"]
            first, crop, second = zoomed
            result["resize"] = _scales(plain[0]["img_scale"])
            result["zoom"] = {
                "probability": 0.5,
                "resize": _scales(first["img_scale"]),
                "crop": list(crop["crop_size"]),
            }
            if _scales(second["img_scale"]) != result["resize"]:
                unmapped.append("AutoAugment: another resize after the crop")
        elif kind not in IGNORED:
            unmapped.append(f"data pipeline: {kind}")
    return result


def _scales(scale: Any) -> list[list[int]]:
    """One (long, short) pair or a list of pairs, in any order -> [[long, short], ...]."""
    pairs = scale if isinstance(scale[0], list | tuple) else [scale]
    return [sorted(pair, reverse=True) for pair in pairs]
