"""Tiny randomly initialised checkpoints of every family, written to disk in the hub's own layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

PATCH, IMAGE, WIDTH, LAYERS = 8, 32, 32, 3

_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": IMAGE,
}
_WIDE = {**_SIZES, "intermediate_size": 64}
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# Deliberately unlike every default of transformers' processor classes.
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def _dinov2(head: str = "Model"):
    return getattr(transformers, f"Dinov2{head}")(transformers.Dinov2Config(**_SIZES, mlp_ratio=2))


def _dinov2_with_registers():
    config = transformers.Dinov2WithRegistersConfig(**_SIZES, mlp_ratio=2, num_register_tokens=4)
    return transformers.Dinov2WithRegistersModel(config)


def _dinov3():
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**_WIDE, num_register_tokens=2))


def _vit(head: str = "Model"):
    return getattr(transformers, f"ViT{head}")(transformers.ViTConfig(**_WIDE))


def _deit(head: str = "Model"):
    return getattr(transformers, f"DeiT{head}")(transformers.DeiTConfig(**_WIDE))


def _mae(head: str = "Model"):
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 4,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    }
    return getattr(transformers, f"ViTMAE{head}")(transformers.ViTMAEConfig(**_WIDE, **decoder))


def _clip_vision():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_WIDE))


def _clip():
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=_TEXT, vision_config=_WIDE, projection_dim=16))


def _siglip_vision():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_WIDE))


def _siglip():
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=_TEXT, vision_config=_WIDE))


def _beit(head: str = "Model"):
    config = transformers.BeitConfig(
        **_WIDE, use_relative_position_bias=True, use_mask_token=True, use_absolute_position_embeddings=True
    )
    return getattr(transformers, f"Beit{head}")(config)


def _dinov3_gated():
    """As its largest checkpoint: a gated MLP, and keys with a bias as its config may ask for."""
    settings = {**_WIDE, "num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**settings))


def _webssl():
    """As facebook/webssl-dino7b: DINOv2 with SwiGLU."""
    return transformers.Dinov2Model(transformers.Dinov2Config(**_SIZES, mlp_ratio=2, use_swiglu_ffn=True))


def _openclip():
    """As laion's: the config of each part says gelu where OpenAI's says quick_gelu."""
    parts = {"text_config": {**_TEXT, "hidden_act": "gelu"}, "vision_config": {**_WIDE, "hidden_act": "gelu"}}
    return transformers.CLIPModel(transformers.CLIPConfig(**parts, projection_dim=16))


def _metaclip_2(head: str = "Vision"):
    if head == "Vision":
        return transformers.MetaClip2VisionModel(transformers.MetaClip2VisionConfig(**_WIDE))
    config = transformers.MetaClip2Config(text_config=_TEXT, vision_config=_WIDE, projection_dim=16)
    return transformers.MetaClip2Model(config)


_NAFLEX = {key: value for key, value in _WIDE.items() if key != "image_size"} | {"num_patches": (IMAGE // PATCH) ** 2}


def _siglip2_naflex_vision():
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**_NAFLEX))


def _siglip2_naflex():
    return transformers.Siglip2Model(transformers.Siglip2Config(text_config=_TEXT, vision_config=_NAFLEX))


def _beit_pretrained():
    """As microsoft/beit-base-patch16-224-pt22k: one position bias for all layers, no absolute positions."""
    config = transformers.BeitConfig(**_WIDE, use_shared_relative_position_bias=True, use_mask_token=True)
    return transformers.BeitModel(config)


def _data2vec(head: str = "Model", **settings: bool):
    """As facebook/data2vec-vision-base, whose bias all layers share; those that are tuned have one in each."""
    settings = settings or {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
    return getattr(transformers, f"Data2VecVision{head}")(transformers.Data2VecVisionConfig(**_WIDE, **settings))


def _ijepa():
    return transformers.IJepaModel(transformers.IJepaConfig(**_WIDE))


def _vit_msn():
    """A family that the table does not know and that is a plain ViT."""
    return transformers.ViTMSNModel(transformers.ViTMSNConfig(**_WIDE))


def _chinese_clip():
    """A text and image model that the table does not know."""
    return transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(text_config=_TEXT, vision_config=_WIDE, projection_dim=16)
    )


def _yolos():
    """Puts detection tokens behind the patch tokens, so that the last tokens are no patches."""
    return transformers.YolosModel(transformers.YolosConfig(**{**_WIDE, "image_size": [IMAGE, IMAGE]}))


def _swin():
    """Halves its patch grid from stage to stage."""
    config = transformers.SwinConfig(
        image_size=IMAGE, patch_size=4, embed_dim=8, depths=[1, 1, 2], num_heads=[1, 2, 2], window_size=2
    )
    return transformers.SwinModel(config)


def _resnet():
    return transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )


def _bert():
    return transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50
        )
    )


# What each checkpoint should be recognised as: (maker, family, prefix tokens, objective).
FAMILIES = {
    "dinov2": (_dinov2, "dinov2", 1, "self-distillation"),
    "dinov2-classifier": (lambda: _dinov2("ForImageClassification"), "dinov2", 1, "self-distillation"),
    "dinov2-registers": (_dinov2_with_registers, "dinov2_with_registers", 5, "self-distillation"),
    "dinov3": (_dinov3, "dinov3_vit", 3, "self-distillation"),
    "dinov3-gated": (_dinov3_gated, "dinov3_vit", 3, "self-distillation"),
    "dinov2-webssl": (_webssl, "dinov2", 1, "self-distillation"),
    "vit": (_vit, "vit", 1, "unknown"),
    "vit-classifier": (lambda: _vit("ForImageClassification"), "vit", 1, "supervised"),
    "deit": (_deit, "deit", 2, "unknown"),
    "deit-distilled": (lambda: _deit("ForImageClassificationWithTeacher"), "deit", 2, "supervised"),
    "mae": (_mae, "vit_mae", 1, "masked-reconstruction"),
    "mae-pretraining": (lambda: _mae("ForPreTraining"), "vit_mae", 1, "masked-reconstruction"),
    "clip-vision": (_clip_vision, "clip_vision_model", 1, "contrastive"),
    "clip": (_clip, "clip_vision_model", 1, "contrastive"),
    "openclip": (_openclip, "clip_vision_model", 1, "contrastive"),
    "metaclip-2": (_metaclip_2, "metaclip_2_vision_model", 1, "contrastive"),
    "metaclip-2-whole": (lambda: _metaclip_2("whole"), "metaclip_2_vision_model", 1, "contrastive"),
    "siglip2-naflex-vision": (_siglip2_naflex_vision, "siglip2_vision_model", 0, "contrastive"),
    "siglip2-naflex": (_siglip2_naflex, "siglip2_vision_model", 0, "contrastive"),
    "siglip-vision": (_siglip_vision, "siglip_vision_model", 0, "contrastive"),
    "siglip": (_siglip, "siglip_vision_model", 0, "contrastive"),
    "beit": (_beit, "beit", 1, "masked-reconstruction"),
    "beit-classifier": (lambda: _beit("ForImageClassification"), "beit", 1, "masked-reconstruction"),
    "beit-pretrained": (_beit_pretrained, "beit", 1, "masked-reconstruction"),
    "data2vec": (_data2vec, "data2vec-vision", 1, "self-prediction"),
    "data2vec-classifier": (
        lambda: _data2vec("ForImageClassification", use_relative_position_bias=True),
        *("data2vec-vision", 1, "self-prediction"),
    ),
    "ijepa": (_ijepa, "ijepa", 0, "self-prediction"),
    "vit-msn": (_vit_msn, "vit_msn", 1, "unknown"),
    "chinese-clip": (_chinese_clip, "chinese_clip", 1, "unknown"),
}

NOT_A_VIT = {"yolos": _yolos, "swin": _swin, "resnet": _resnet, "bert": _bert}


def make_model(kind: str, seed: int = 0) -> transformers.PreTrainedModel:
    """Build a tiny model; every weight is drawn anew, so that zero-initialised parts cannot hide a mistake."""
    maker = NOT_A_VIT[kind] if kind in NOT_A_VIT else FAMILIES[kind][0]
    generator = torch.Generator().manual_seed(seed)
    state = torch.get_rng_state()
    model = maker().eval()
    torch.set_rng_state(state)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = 0.1 * torch.randn(weight.shape, generator=generator)
            is_norm = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(noise + 1 if is_norm or "lambda" in name else noise)
    return model


def write_preprocessing(directory: Path, **changes: object) -> None:
    """Write a preprocessor_config.json; a setting given as None is left out."""
    settings = {
        "do_resize": True,
        "size": {"height": 20, "width": 20},
        "do_center_crop": True,
        "crop_size": {"height": 16, "width": 16},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 2,
        **changes,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_checkpoint(kind: str, directory: Path, seed: int = 0) -> Path:
    """Write config.json, model.safetensors and preprocessor_config.json of a tiny model."""
    make_model(kind, seed).save_pretrained(directory)
    write_preprocessing(directory)
    return directory
