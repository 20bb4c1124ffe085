"""Chat templates by name, for data that is not to be rendered with the model's own."""

from __future__ import annotations

from collections.abc import Mapping

from truing.suggest import did_you_mean

_NEEDS_CONTENT = "{{ raise_exception('this template writes text only, and a message has none') if 'content' not in message }}"
TEMPLATES: Mapping[str, str] = {
    "chatml": (
        f"{{% for message in messages %}}{_NEEDS_CONTENT}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        f"{{{{ bos_token }}}}{{% for message in messages %}}{_NEEDS_CONTENT}"
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
}
"""Templates that change no content; a turn ends with its token, and messages without text, such as calls of tools, are refused."""


def find_template(wanted: str | None) -> str | None:
    """Return the template of a name, Jinja text as it is, or None. Raises ValueError for a name that there is not."""
    if wanted is None or "{{" in wanted or "{%" in wanted:
        return wanted
    if wanted not in TEMPLATES:
        raise ValueError(
            f"chat_template is {wanted!r}{did_you_mean(wanted, TEMPLATES)}; give {' or '.join(TEMPLATES)}, or the Jinja text itself"
        )
    return TEMPLATES[wanted]
