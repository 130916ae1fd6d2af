"""The conversations that LLaVA's models were trained with, as chat templates: their checkpoints do not hold any."""

from __future__ import annotations

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""What stands in front of Vicuna's conversation."""

_PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}[message['role']] or '' }}"
    + _PARTS
    + "{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Vicuna's without a system sentence, as Hugging Face's LLaVA-1.5 has it; for processors without a template."""

VICUNA = "{% if messages[0]['role'] != 'system' %}{{ " + repr(f"{SYSTEM} ") + " }}{% endif %}" + CHAT_TEMPLATE
"""``vicuna_v1``, with its system sentence, unless the conversation brings one of its own."""

MISTRAL = (
    "{% for message in messages %}{{ {'user': '[INST] ', 'assistant': ' '}[message['role']] or '' }}"
    + _PARTS
    + "{{ {'user': ' [/INST]', 'assistant': ' </s>'}[message['role']] or ' ' }}{% endfor %}"
)
"""``mistral_instruct``."""

QWEN = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    + _PARTS
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""``qwen_1_5``, with its system sentence."""
