"""LLaVA's own checkpoint format, read into Hugging Face's classes of LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision.

The original repositories (``liuhaotian/llava-v1.5-7b``, ``liuhaotian/llava-v1.6-vicuna-7b``,
``lmms-lab/llava-onevision-qwen2-0.5b-ov``) keep the language model's config with ``mm_*`` keys and weights named after
LLaVA's modules. The vision tower's weights lie in the same
files or are named by ``mm_vision_tower``.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from .llava_format import SELECT_STRATEGIES, check_format, cuts_tiles, is_onevision
from .llava_processor import IMAGE_TOKEN, VIDEO_TOKEN, LlavaKindOfConfig, LlavaKindOfProcessor, build_processor

LlavaModelWithHead = (
    LlavaForConditionalGeneration | LlavaNextForConditionalGeneration | LlavaOnevisionForConditionalGeneration
)
logger = logging.getLogger(__name__)

TOWER_PREFIX = "model.vision_tower.vision_tower."
RENAMES = {
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.image_newline": "model.image_newline",
    "model.": "model.language_model.",
    "lm_head.": "lm_head.",
}
LANGUAGE_MODELS: dict[str, type[PreTrainedConfig]] = {"Mistral": MistralConfig, "Qwen": Qwen2Config}
"""By what is in the name of the architecture; else it is Llama."""

PAD_TOKEN = "<pad>"


def load_llava(
    path_or_id: str | Path,
    *,
    vision_tower: str | Path | PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[LlavaModelWithHead, LlavaKindOfProcessor | None]:
    """Read a checkpoint in LLaVA's own format.

    Args:
        path_or_id: folder or hub id with ``config.json`` and weights (safetensors or ``.bin``, sharded or not).
        vision_tower: overrides ``mm_vision_tower``: a folder, a hub id, or the tower's config where its weights
            lie in the checkpoint. A ``vision_config`` in ``config.json`` does the same as the latter.
        dtype: of the model; by default that of the checkpoint's weights.

    Returns:
        The model in evaluation mode, and its processor. A checkpoint without tokenizer files gives ``None`` for
        the processor and keeps its vocabulary; token id 0 (``<unk>``, which LLaVA's tokenizers never make from
        text) is then the image placeholder. With a tokenizer, the tokens of pictures, videos (LLaVA-OneVision) and
        padding that it lacks are added to the vocabulary, their rows the mean of all others. Its chat template is the
        conversation that LLaVA's scripts use for it.

    Raises:
        FileNotFoundError: no ``config.json`` or no weights.
        UnsupportedModelError: not LLaVA's format, or something in it that Hugging Face's classes do not have, such as a
            projector that is not the two-layer MLP of LLaVA-1.5.
        ValueError: weights are missing or do not fit the config.
    """
    folder = local_folder(path_or_id)
    original = json.loads((folder / "config.json").read_text())
    check_format(original, folder)
    weights = read_weights(folder)
    tower_config, tower_source = read_tower_config(original, folder, vision_tower)
    tokenizer = read_tokenizer(folder)
    image_token_id = 0
    if tokenizer is not None:
        tokenizer.add_tokens([IMAGE_TOKEN, *([VIDEO_TOKEN] if is_onevision(original) else [])], special_tokens=True)
        if tokenizer.pad_token is None or not is_onevision(original):
            tokenizer.add_tokens([PAD_TOKEN], special_tokens=True)
            tokenizer.pad_token = PAD_TOKEN
        image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config = convert_config(original, tower_config, image_token_id, tokenizer)
    state = convert_weights(weights, tower_source, config)
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    model = build_model(config, state)
    return model, None if tokenizer is None else build_processor(original, config, tokenizer)


def local_folder(path_or_id: str | Path) -> Path:
    """The checkpoint's folder, downloaded from the hub where it is not one already."""
    folder = Path(path_or_id)
    if not folder.is_dir():
        if folder.is_absolute() or str(path_or_id).count("/") != 1:
            raise FileNotFoundError(f"{path_or_id} is neither a folder nor a hub id such as liuhaotian/llava-v1.5-7b.")
        patterns = ["*.json", "*.safetensors", "*.bin", "*.model"]
        folder = Path(snapshot_download(str(path_or_id), allow_patterns=patterns))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json.")
    return folder


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, from safetensors where there are any, else from ``.bin`` files."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        parts = [load_file(file) for file in files]
    else:
        files = sorted(file for file in folder.glob("*.bin") if re.match(r"(pytorch_model|mm_projector)", file.name))
        parts = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
    if not parts:
        raise FileNotFoundError(f"{folder} has no weights (*.safetensors or pytorch_model*.bin).")
    return {name: tensor for part in parts for name, tensor in part.items()}


def read_tower_config(
    original: dict[str, Any], folder: Path, vision_tower: str | Path | PreTrainedConfig | None
) -> tuple[PreTrainedConfig, str | None]:
    """The vision tower's config, and where its weights come from if they are not in the checkpoint.

    SigLIP's last layer and its pooling head, which LLaVA leaves out, are left out of a named tower's config.
    """
    if isinstance(vision_tower, PreTrainedConfig):
        return vision_tower, None
    if vision_tower is None and isinstance(original.get("vision_config"), dict):
        described = dict(original["vision_config"])
        return AutoConfig.for_model(described.pop("model_type", "clip_vision_model"), **described), None
    named = vision_tower or original.get("mm_vision_tower")
    if named is None:
        raise ValueError(f"{folder / 'config.json'} names no mm_vision_tower; pass vision_tower=FOLDER_OR_HUB_ID.")
    source = str(folder / named) if (folder / named).is_dir() else str(named)
    file = Path(source) / "config.json"
    if file.is_file() and "model_type" not in json.loads(file.read_text()):
        # LLaVA reads its tower as CLIP, whatever the config says.
        return CLIPVisionConfig.from_pretrained(source), source
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    if config.model_type == "siglip_vision_model":
        config = type(config).from_dict(
            {**config.to_dict(), "num_hidden_layers": config.num_hidden_layers - 1, "vision_use_head": False}
        )
    return config, source


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the weights, or ``None``."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        logger.warning("%s has no tokenizer: no processor is built, token id 0 stands for the image.", folder)
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def convert_config(
    original: dict[str, Any], tower_config: PreTrainedConfig, image_token_id: int, tokenizer: Any
) -> LlavaKindOfConfig:
    """The Hugging Face config that says the same."""
    architecture = "".join(original.get("architectures") or ())
    text_class: type[PreTrainedConfig] = next(
        (kind for name, kind in LANGUAGE_MODELS.items() if name in architecture), LlamaConfig
    )
    ours = {
        key: value
        for key, value in original.items()
        if not key.startswith(("mm_", "image_", "_")) and key not in ("model_type", "architectures", "vision_config")
    }
    if tokenizer is not None:
        ours["vocab_size"] = max(original["vocab_size"], len(tokenizer))
        ours["pad_token_id"] = tokenizer.pad_token_id
    strategy: Any = SELECT_STRATEGIES[original.get("mm_vision_select_feature", "patch")]
    layer = original.get("mm_vision_select_layer", -2)
    form: type[LlavaKindOfConfig] = LlavaConfig
    own: dict[str, Any] = {"image_seq_length": (tower_config.image_size // tower_config.patch_size) ** 2}
    if cuts_tiles(original):
        form = LlavaNextConfig
        # LLaVA writes resolutions as (width, height), Hugging Face as (height, width).
        own["image_grid_pinpoints"] = [[height, width] for width, height in original["image_grid_pinpoints"]]
    if is_onevision(original):
        form = LlavaOnevisionConfig
        del own["image_seq_length"]
        own["vision_aspect_ratio"] = original["image_aspect_ratio"]
        # LLaVA reads the last layer of a SigLIP that lost one, whatever the config says.
        layer, strategy = -1, "full"
        # A model without a tokenizer has no token left over for videos.
        own["video_token_index"] = -1 if tokenizer is None else tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    return form(
        **own,
        vision_config=tower_config,
        text_config=text_class(**ours),
        image_token_index=image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
    )


def convert_weights(
    weights: dict[str, Tensor], tower_source: str | None, config: LlavaKindOfConfig
) -> dict[str, Tensor]:
    """The weights under their Hugging Face names, the vocabulary extended where the config says so."""
    tower = {
        name.removeprefix(TOWER_PREFIX).removeprefix("vision_model."): tensor
        for name, tensor in weights.items()
        if name.startswith(TOWER_PREFIX)
    }
    if not tower:
        if tower_source is None:
            raise ValueError(
                "The checkpoint has no vision-tower weights; pass vision_tower=FOLDER_OR_HUB_ID that has them."
            )
        pretrained = AutoModel.from_pretrained(tower_source, config=config.vision_config, trust_remote_code=False)
        tower = {name.removeprefix("vision_model."): tensor for name, tensor in pretrained.state_dict().items()}
    state = {f"model.vision_tower.{name}": tensor for name, tensor in tower.items()}
    for name, tensor in weights.items():
        if not name.startswith("model.vision_tower."):
            old, new = next(((old, new) for old, new in RENAMES.items() if name.startswith(old)), (None, None))
            if old is not None and new is not None:
                state[new + name.removeprefix(old)] = tensor
    text: Any = config.text_config
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        missing = text.vocab_size - len(state[name]) if name in state else 0
        if missing > 0:
            mean = state[name].float().mean(dim=0, keepdim=True).to(state[name].dtype)
            state[name] = torch.cat([state[name], mean.expand(missing, -1)])
    return {name: tensor for name, tensor in state.items() if not name.endswith(("position_ids", "inv_freq"))}


def build_model(config: LlavaKindOfConfig, state: dict[str, Tensor]) -> LlavaModelWithHead:
    """The model with these weights, in their dtype, in evaluation mode.

    Raises:
        ValueError: weights are missing or left over; names them.
    """
    form: Any = LlavaForConditionalGeneration
    if isinstance(config, LlavaNextConfig):
        form = LlavaNextForConditionalGeneration
    if isinstance(config, LlavaOnevisionConfig):
        form = LlavaOnevisionForConditionalGeneration
    loaded: Any = form.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=state["model.language_model.norm.weight"].dtype,
        output_loading_info=True,
    )
    model: LlavaModelWithHead = loaded[0].eval()
    report: dict[str, Any] = loaded[1]
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise ValueError(f"The checkpoint's weights do not fit its config: {report}.")
    return model
