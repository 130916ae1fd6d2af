"""The model of a run: loaded or put together from parts, adapters added, and frozen where it is not trained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from ..checkpoints.conversations import CHAT_TEMPLATE
from ..checkpoints.llava import PAD_TOKEN
from ..checkpoints.llava_processor import IMAGE_TOKEN
from ..checkpoints.loading import DTYPES, load_model
from ..checkpoints.mini import MINI
from ..models import ModelParts, find_parts
from .config import PartsConfig, TrainConfig, TuneConfig


@dataclass(frozen=True)
class Prepared:
    """What a run trains.

    Attributes:
        model: with its adapters, on the CPU, in training mode.
        processor: the model's.
        parts: of the model.
        base: for adapters, the name of the model they belong to, where that is no folder or hub id.
    """

    model: Any
    processor: Any
    parts: ModelParts
    base: str | None

    def group_of(self, parameter: nn.Parameter) -> str:
        """Which part a trained weight belongs to: ``language``, ``projector`` or ``tower``."""
        if any(parameter is one for one in self.parts.projector.parameters()):
            return "projector"
        towers = (one for tower in self.parts.towers for one in tower.module.parameters())
        return "tower" if any(parameter is one for one in towers) else "language"


def prepare(config: TrainConfig) -> Prepared:
    """The model of a run.

    Raises:
        FlowCutError: PEFT is needed and not installed, or as :func:`~flowcut.checkpoints.loading.load_model`.
        ValueError: no layer gets adapters.
    """
    if config.model is None:
        model, processor = assemble(config.parts, DTYPES[config.optimize.weights])
    else:
        loaded = load_model(config.model, "cpu", config.optimize.weights)
        model, processor = loaded.model, loaded.processor
    if config.data.squares is not None:
        processor.image_processor = square_processor(processor, pad=config.data.squares == "pad")
    model.config.use_cache = False
    tuned = tune(model, config.tune)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # updates smaller than bfloat16's steps add up
    for module in unread(tuned):
        module.requires_grad_(False)
    _, parts = find_parts(tuned)
    adapters = tuned is not model
    return Prepared(tuned.train(), processor, parts, MINI if adapters and config.model == MINI else None)


def tune(model: Any, settings: TuneConfig) -> Any:
    """Let train what shall be trained: the model, or the same with adapters around it.

    Raises:
        ValueError: no layer gets adapters.
    """
    _, parts = find_parts(model)
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    if settings.language == "full":
        parts.language_model.requires_grad_(True)
        if head is not None:
            head.requires_grad_(True)
    if settings.tower == "full":
        for tower in parts.towers:
            tower.module.requires_grad_(True)
    places = []
    if settings.language == "lora":
        places.append(parts.language_model)
    if settings.tower == "lora":
        places += [tower.module for tower in parts.towers]
    full = [module for module in (parts.projector,) if settings.projector]
    if places:
        # PEFT freezes everything else, so what is trained whole is named to it.
        full += [parts.language_model] if settings.language == "full" else []
        full += [tower.module for tower in parts.towers] if settings.tower == "full" else []
        return with_adapters(model, places, full, settings)
    for module in full:
        module.requires_grad_(True)
    return model


def with_adapters(model: Any, places: list[nn.Module], full: list[nn.Module], settings: TuneConfig) -> Any:
    """The model with adapters in ``places``; modules in ``full`` are trained and saved whole beside them."""
    from peft import LoraConfig, get_peft_model

    names = {id(module): name for name, module in model.named_modules()}
    without = {id(one) for whole in (*full, *unread(model)) for one in whole.modules()}
    targets = [
        f"{names[id(place)]}.{name}"
        for place in places
        for name, module in place.named_modules()
        if isinstance(module, nn.Linear)
        and (settings.targets is None or name.rpartition(".")[2] in settings.targets)
        and id(module) not in without
    ]
    if not targets:
        raise ValueError(f"tune.targets names no linear layer of what gets adapters: {settings.targets}.")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=rf"({'|'.join(map(re.escape, targets))})",
        modules_to_save=[names[id(module)] for module in full] or None,
    )
    return get_peft_model(model, config)


def unread(model: Any) -> list[nn.Module]:
    """What lies in the towers behind the last layer that the model reads: it does not run and gets no gradient."""
    family, parts = find_parts(model)
    if parts.tower.packing is not None:
        return []
    last = max(family.feature_choice(parts, {}).layers)
    found: list[nn.Module] = []
    for tower in parts.towers:
        if last < len(tower.layers):
            found += tower.layers[last:]
            # What follows the layers is not read either, where hidden states are.
            found += [
                module
                for name, module in tower.module.named_modules()
                if re.search(r"(^|\.)(post_layernorm|layernorm|head)$", name)
            ]
    return found


def assemble(parts: PartsConfig, dtype: torch.dtype) -> tuple[Any, Any]:
    """A LLaVA-1.5 from a language model and a CLIP tower, with a new projector.

    ``<image>`` and ``<pad>`` join the vocabulary where they are not in it, their rows the mean of all others.

    Raises:
        OSError, ValueError: a part cannot be loaded, or is of another kind.
    """
    language_name, tower_name = str(parts.language), str(parts.tower)
    loaders: Any = (AutoConfig, AutoModelForCausalLM, AutoModel, AutoTokenizer, AutoImageProcessor)
    configs, languages, towers, tokenizers, pictures = loaders
    tokenizer = tokenizers.from_pretrained(language_name, trust_remote_code=False)
    added = [token for token in (IMAGE_TOKEN, PAD_TOKEN) if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens([IMAGE_TOKEN, PAD_TOKEN], special_tokens=True)
    tokenizer.pad_token = PAD_TOKEN
    language = languages.from_pretrained(language_name, dtype=dtype, trust_remote_code=False)
    language.resize_token_embeddings(max(len(tokenizer), language.config.vocab_size), mean_resizing=False)
    vision = configs.from_pretrained(tower_name, trust_remote_code=False)
    vision = getattr(vision, "vision_config", vision)
    if vision.model_type != "clip_vision_model":
        raise ValueError(f"parts.tower must be a CLIP vision tower, as LLaVA-1.5 has; {tower_name} is {vision}.")
    tower = towers.from_pretrained(tower_name, config=vision, dtype=dtype, trust_remote_code=False)
    config = LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    form: Any = LlavaForConditionalGeneration
    model = form._from_config(config, dtype=dtype)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.tie_weights()
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            new = tokenizer.convert_tokens_to_ids(added)
            old = torch.ones(len(table), dtype=torch.bool).index_fill(0, torch.tensor(new), False)
            table[new] = table[old].float().mean(dim=0).to(table.dtype)
    form_of_processor: Any = LlavaProcessor
    processor = form_of_processor(
        image_processor=pictures.from_pretrained(tower_name),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def square_processor(processor: Any, *, pad: bool) -> Any:
    """An image processor like that of ``processor`` which pads pictures to squares, or takes their middle.

    Raises:
        ValueError: the processor is not LLaVA-1.5's.
    """
    if not isinstance(processor, LlavaProcessor):
        raise ValueError(f"data.squares is for LLaVA-1.5; pictures of {type(processor).__name__} keep their form.")
    own: Any = processor.image_processor
    form: Any = LlavaImageProcessor if pad else CLIPImageProcessor
    same = ("size", "crop_size", "image_mean", "image_std")
    return form(**{name: getattr(own, name) for name in same}, **({"do_pad": True} if pad else {}))


def template_of(config: TrainConfig) -> str | None:
    """The chat template of a run, where it has one of its own.

    Raises:
        FileNotFoundError: there is no such file.
    """
    named = config.data.chat_template
    if named is None:
        return None
    if not Path(named).is_file():
        raise FileNotFoundError(f"There is no chat template {named!r} (data.chat_template).")
    return Path(named).read_text(encoding="utf-8")
