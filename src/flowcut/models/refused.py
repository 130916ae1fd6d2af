"""The image-text-to-text classes of transformers that cannot be supported, and why: what there is to cut, and where."""

from __future__ import annotations

_CROSS = "its decoder looks at the picture by cross-attention: visual tokens never enter the prompt"
_QUERIES = "a Q-Former condenses every picture to a few learned queries: what it hands on is short already"
_ENCODER = "an encoder-decoder: visual tokens are in the encoder, not in the prompt of a decoder"
_DISCRETE = "pictures become discrete tokens of the vocabulary: there are no features to choose among"

REFUSED: dict[str, str] = {
    "Apertus1p5ForConditionalGeneration": _DISCRETE,
    "BlipForConditionalGeneration": _CROSS,
    "Blip2ForConditionalGeneration": _QUERIES,
    "ChameleonForConditionalGeneration": _DISCRETE,
    "DiffusionGemmaForBlockDiffusion": "writes its answer by block diffusion, with an encoder and a decoder that share a "
    "cache: there is no prefill of one decoder to shorten",
    "Emu3ForConditionalGeneration": _DISCRETE,
    "EvollaForProteinText2Text": "reads proteins, not pictures",
    "Florence2ForConditionalGeneration": _ENCODER,
    "FuyuForCausalLM": "has no vision tower: raw patches are embedded by one linear map and the decoder itself sees them",
    "GitForCausalLM": "puts all visual tokens in front of every layer of its decoder, without placeholders in the prompt",
    "IdeficsForVisionText2Text": _CROSS,
    "InstructBlipForConditionalGeneration": _QUERIES,
    "InstructBlipVideoForConditionalGeneration": _QUERIES,
    "Kosmos2ForConditionalGeneration": "condenses every picture to 64 learned queries, and has its own way into the prompt "
    "(image_embeds_position_mask)",
    "Kosmos2_5ForConditionalGeneration": "condenses every picture to learned queries, and has its own way into the prompt "
    "(image_embeds_position_mask)",
    "Mistral4ForCausalLM": "a text model: the class has no vision tower",
    "MllamaForConditionalGeneration": _CROSS,
    "PI0ForConditionalGeneration": "writes robot actions by flow matching, not text",
    "PPFormulaNetForConditionalGeneration": _ENCODER,
    "Pix2StructForConditionalGeneration": _ENCODER,
    "T5Gemma2ForConditionalGeneration": _ENCODER,
    "UdopForConditionalGeneration": _ENCODER,
    "VisionEncoderDecoderModel": _ENCODER,
}
"""Class names, and the rest of a sentence that begins with the class's name."""
