"""The image-text-to-text classes of transformers that cannot be supported, and why, or not with every release of it."""

from __future__ import annotations

_CROSS = "its decoder looks at the picture by cross-attention: visual tokens never enter the prompt"
_QUERIES = "a Q-Former condenses every picture to a few learned queries: what it hands on is short already"
_ENCODER = "it is an encoder-decoder: visual tokens are in the encoder, not in the prompt of a decoder"
_DISCRETE = "pictures become discrete tokens of the vocabulary: there are no features to choose among"

_KOSMOS = "it condenses every picture to a few learned queries, which have their own way into the prompt"

REFUSED: dict[str, str] = {
    "Apertus1p5ForConditionalGeneration": _DISCRETE,
    "BlipForConditionalGeneration": _CROSS,
    "Blip2ForConditionalGeneration": _QUERIES,
    "ChameleonForConditionalGeneration": _DISCRETE,
    "DiffusionGemmaForBlockDiffusion": "it writes by block diffusion: there is no prefill of one decoder to shorten",
    "Emu3ForConditionalGeneration": _DISCRETE,
    "EvollaForProteinText2Text": "it reads proteins, not pictures",
    "Florence2ForConditionalGeneration": _ENCODER,
    "FuyuForCausalLM": "it has no vision tower: raw patches go through one linear map into the decoder",
    "GitForCausalLM": "all visual tokens stand in front of the prompt, without placeholders, in every layer",
    "IdeficsForVisionText2Text": _CROSS,
    "InstructBlipForConditionalGeneration": _QUERIES,
    "InstructBlipVideoForConditionalGeneration": _QUERIES,
    "Kosmos2ForConditionalGeneration": _KOSMOS,
    "Kosmos2_5ForConditionalGeneration": _KOSMOS,
    "Mistral4ForCausalLM": "it is a text model: the class has no vision tower",
    "MllamaForConditionalGeneration": _CROSS,
    "PI0ForConditionalGeneration": "it writes robot actions by flow matching, not text",
    "PPFormulaNetForConditionalGeneration": _ENCODER,
    "Pix2StructForConditionalGeneration": _ENCODER,
    "T5Gemma2ForConditionalGeneration": _ENCODER,
    "UdopForConditionalGeneration": _ENCODER,
    "VisionEncoderDecoderModel": _ENCODER,
}
"""The reason by the name of the class."""

_RESAMPLED = "makes its visual tokens by attention over the whole picture: each would change with a patch less"

WHOLE: dict[str, str] = {
    "AriaModel": _RESAMPLED,
    "DeepseekVLHybridModel": "adds to every place of its tower's output what a second, convolutional tower says there",
    "FastVlmModel": "has a convolutional tower (timm's FastViT): its last map is what becomes tokens",
    "Idefics2Model": _RESAMPLED,
    "Lfm3VlModel": "has a tower whose layers mix neighbouring patches by convolution",
    "Molmo2Model": "pools patches of crops that overlap, as the processor says: no patch belongs to one token",
    "PerceptionLMModel": "has a tower of timm's, whose attention does not go through transformers' interface",
    "UnlimitedOcrModel": "has a convolutional tower (SAM) in front of its attention, which shrinks the picture first",
}
"""Why a supported model's tower stays whole, by the class of its base: the end of a sentence that begins with that."""

_TESTED = "5.24"

NEWER: dict[str, str] = dict.fromkeys(
    (
        "Cosmos3EdgeForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration",
        "MiniCPMV4_6ForConditionalGeneration",
        "MiniMaxM3SparseForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
    ),
    _TESTED,
)
"""Classes that work with this release of transformers, and gave other answers, or none, with an older one (5.18)."""
