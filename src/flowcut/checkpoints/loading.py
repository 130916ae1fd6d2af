"""A model, its processor and an image, from what a user types: folders, hub ids, device and dtype names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..errors import FlowCutError, UnsupportedModelError
from ..inputs.pictures import first_line
from ..models import REFUSED, supported_classes
from .llava import load_llava
from .llava_format import is_original_llava
from .memory import optional_file, read_memory
from .mini import MINI, mini_folder

ADAPTERS = "adapter_config.json"
"""What PEFT puts beside adapters."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    Attributes:
        model: in evaluation mode, on its device.
        processor: prepares prompts and images for it; has a tokenizer.
        device: where the model lies.
        dtype: of its weights.
    """

    model: PreTrainedModel
    processor: Any
    device: torch.device
    dtype: torch.dtype


def load_model(path_or_id: str, device: str | None = None, dtype: str | None = None) -> LoadedModel:
    """Load a supported model with its processor, in Hugging Face's format or in LLaVA's own.

    Args:
        path_or_id: a folder, a hub id such as ``llava-hf/llava-1.5-7b-hf``, or ``flowcut-mini``. PEFT adapters are
            merged into the model they belong to.
        device: a torch device name; by default a CUDA device where there is one, else the CPU.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default bfloat16 on CUDA and float32 elsewhere.

    Raises:
        FileNotFoundError: no model there, or a part of it is missing.
        UnsupportedModelError: a model of a family that flowcut does not know.
        FlowCutError: the checkpoint has no processor, or a processor without a tokenizer; or flowcut-mini's data
            package, or PEFT for adapters, is not installed.
        ValueError: the device or the dtype is unknown or not available.
    """
    where = choose_device(device)
    what = choose_dtype(dtype, where)
    model, processor = read_checkpoint(path_or_id, what, with_processor=True)
    return LoadedModel(moved(model, where), processor, where, what)


def load_model_alone(path_or_id: str, device: str | None = None, dtype: str | None = None) -> PreTrainedModel:
    """The same without a processor, which need not be there."""
    where = choose_device(device)
    model, _ = read_checkpoint(path_or_id, choose_dtype(dtype, where), with_processor=False)
    return moved(model, where)


def read_checkpoint(path_or_id: str, dtype: torch.dtype | None, *, with_processor: bool) -> tuple[Any, Any]:
    """A model on the CPU, and its processor where it is wanted; see :func:`load_model`.

    Args:
        path_or_id: what is read.
        dtype: of the weights; ``None`` for the one they are stored in.
        with_processor: whether the processor must be there.
    """
    if path_or_id == MINI:
        path_or_id = str(mini_folder())
    if optional_file(path_or_id, ADAPTERS) is not None:
        return read_adapted(path_or_id, dtype, with_processor=with_processor)
    config = read_config(path_or_id)
    if is_original_llava(config):
        original, processor = load_llava(path_or_id, dtype=dtype)
        if with_processor:
            check_processor(path_or_id, processor)
        return original, processor
    check_family(path_or_id, config)
    processor = load_processor(path_or_id) if with_processor else None
    try:
        model = AutoModelForImageTextToText.from_pretrained(path_or_id, dtype=dtype or "auto", trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(f"{path_or_id} could not be loaded: {first_line(error)}") from error
    return model, processor


def read_adapted(path_or_id: str, dtype: torch.dtype | None, *, with_processor: bool) -> tuple[Any, Any]:
    """The model that PEFT adapters belong to, with the adapters merged into its weights.

    The processor beside the adapters goes before that of the model.

    Raises:
        FlowCutError: PEFT is not installed, or nothing says which model they belong to.
    """
    peft = find_peft(path_or_id)
    memory = read_memory(path_or_id)
    base = memory.base if memory is not None and memory.base is not None else None
    base = base or peft.PeftConfig.from_pretrained(path_or_id).base_model_name_or_path
    if not base:
        raise FlowCutError(f"{path_or_id} holds adapters, but {ADAPTERS} does not name the model they belong to.")
    own = optional_file(path_or_id, "processor_config.json") is not None
    model, processor = read_checkpoint(base, dtype, with_processor=with_processor and not own)
    model = peft.PeftModel.from_pretrained(model, path_or_id).merge_and_unload()
    return model, load_processor(path_or_id) if with_processor and own else processor


def find_peft(path_or_id: str) -> Any:
    """The library that reads adapters.

    Raises:
        FlowCutError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise FlowCutError(f"{path_or_id} holds adapters; reading them needs PEFT: pip install peft.") from error
    return peft


def moved(model: Any, device: torch.device) -> PreTrainedModel:
    """The model on its device, in evaluation mode."""
    placed: PreTrainedModel = model.to(device).eval()
    return placed


def choose_device(name: str | None) -> torch.device:
    """The device by name, or the best one here.

    Raises:
        ValueError: torch does not know the name, or this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"Device {name!r} cannot be used here: {first_line(error)}") from error
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype by name, or the one that suits the device.

    Raises:
        ValueError: the name is not one of ``DTYPES``.
    """
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"Unknown dtype {name!r}; known: {', '.join(DTYPES)}.")
    return DTYPES[name]


def read_config(path_or_id: str) -> dict[str, Any]:
    """A checkpoint's ``config.json``, from its folder or from the hub.

    Raises:
        FileNotFoundError: there is no such file.
    """
    folder = Path(path_or_id)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"The folder {path_or_id} has no config.json, so it holds no model.")
    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(path_or_id)[0]
    except OSError as error:
        raise FileNotFoundError(
            f"No model found at {path_or_id!r}: it is neither a folder here nor a model on the "
            f"hub that can be reached. {first_line(error)}"
        ) from error
    return config


def check_family(path_or_id: str, config: dict[str, Any]) -> None:
    """Refuse models that flowcut does not know before their weights are read.

    Raises:
        UnsupportedModelError: lists what is supported.
    """
    model_type = config.get("model_type")
    class_name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(str(model_type))
    if class_name is None or class_name in REFUSED:
        reason = REFUSED.get(str(class_name), "it is no image-text-to-text class of the installed transformers")
        raise UnsupportedModelError(
            f"{path_or_id} is a model of type {model_type!r}, which flowcut does not support: {reason}. "
            f"Supported: {supported_classes()}."
        )


def load_processor(path_or_id: str) -> Any:
    """The processor beside a model.

    Raises:
        FlowCutError: there is none, or it has no tokenizer.
    """
    factory: Any = AutoProcessor
    try:
        processor = factory.from_pretrained(path_or_id, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FlowCutError(
            f"{path_or_id} has no usable processor ({first_line(error)}) Save one beside the model with "
            "processor.save_pretrained(...)."
        ) from error
    check_processor(path_or_id, processor)
    return processor


def check_processor(path_or_id: str, processor: Any) -> None:
    """Refuse a processor that cannot read a question.

    Raises:
        FlowCutError: there is no tokenizer.
    """
    if getattr(processor, "tokenizer", None) is None:
        raise FlowCutError(
            f"{path_or_id} has no tokenizer, so no question can be asked. Put the tokenizer's files "
            "(tokenizer.json, or tokenizer.model with tokenizer_config.json) beside the model."
        )
