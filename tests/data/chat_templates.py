"""Tokenizers with chat templates like those of real models; the templates are our own."""

from dataclasses import dataclass
from typing import Any

from tests.tiny import byte_tokenizer

_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou answer briefly.<|im_end|>\n{% endif %}"
)
_CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def _thinking(answer: str, shown: str) -> str:
    """As in Qwen3: reasoning is removed before the last question, and the last answer always has reasoning."""
    return (
        "{% set ns = namespace(last=-1) %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% set c = m['content'] %}{% set r = '' %}"
        "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "<|im_start|>assistant\n"
        f"{answer.replace('ANSWER', shown)}"
        "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}" + _CHATML_PROMPT
    )


_SHOWN = "{% if loop.index0 > ns.last %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}<|im_end|>"


@dataclass(frozen=True)
class Shape:
    """A template, the special tokens of its tokenizer, the token that ends a turn, and what a model writes before it.

    `{}` in `written` stands for the answer. `turns` says whether earlier turns can be learned beside the last.
    """

    template: str
    special: tuple[str, ...] = ()
    end: str = "<|endoftext|>"
    written: str = "{}"
    turns: tuple[str, ...] = ("all", "last")
    roles: tuple[str, ...] = ("system", "user", "assistant")

    def turn(self, answer: str) -> str:
        """What a model writes for an answer, to the end of its turn."""
        return self.written.replace("{}", answer) + self.end


_CHATML = ("<|im_start|>", "<|im_end|>")


def _chatml_marked(answer: str) -> Shape:
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
        + answer
        + "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        + _CHATML_PROMPT
    )
    return Shape(template, _CHATML, "<|im_end|>")


SHAPES: dict[str, Shape] = {
    "chatml": Shape(
        _DEFAULT_SYSTEM
        + "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        + _CHATML_PROMPT,
        _CHATML,
        "<|im_end|>",
    ),
    "chatml, marks with the end": _chatml_marked("{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"),
    "chatml, marks without the end": _chatml_marked(
        "{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>\n"
    ),
    "llama 3": Shape(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "gemma": Shape(
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        roles=("user", "assistant"),
    ),
    "llama 2": Shape(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] | trim }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}",
        written=" {} ",
        roles=("user", "assistant"),
    ),
    "zephyr": Shape(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "phi 3, an end of all after the last turn": Shape(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "<|end|>",
    ),
    "channels before the content": Shape(
        "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}"
        "<|message|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
        "<|end|>",
        "<|channel|>final<|message|>{}",
    ),
    "plain text": Shape(
        "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n"
        "{% elif m['role'] == 'assistant' %}### Response:\n{{ m['content'] }}\n\n"
        "{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}",
        turns=("last",),
    ),
    "qwen 3": Shape(_thinking("ANSWER\n", _SHOWN), _CHATML, "<|im_end|>", "<think>\n\n</think>\n\n{}", turns=("last",)),
}

TOOLS = Shape(
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>user\n{{ m['content'] }}<|im_end|>\n"
    "{% elif m['role'] == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ m['content'] }}\n</tool_response><|im_end|>\n"
    "{% elif m['role'] == 'assistant' %}<|im_start|>assistant\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{% if m['content'] or not loop.first %}{{ '\n' }}{% endif %}"
    "<tool_call>\n{{ {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}\n"
    "</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}" + _CHATML_PROMPT,
    (*_CHATML, "<tool_call>", "</tool_call>"),
    "<|im_end|>",
)
"""As in Qwen, whose template has the tools in the system message; but the tokens around a call are special."""

LLAMA_TOOLS = Shape(
    "{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nFunctions:{% for tool in tools %}\n{{ tool | tojson(indent=4) }}"
    "{% endfor %}\n{{ messages[0]['content'] | trim }}<|eot_id|>{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m['content'] | tojson }}<|eot_id|>"
    "{% elif m['tool_calls'] %}{% if m['tool_calls'] | length != 1 %}{{ raise_exception('one at once') }}{% endif %}"
    "{% set call = m['tool_calls'][0]['function'] %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ call["name"] }}", "parameters": {{ call["arguments"] | tojson }}}<|eot_id|>'
    "{% else %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
)
"""As in Llama 3.1, which has the tools in the first turn of the user, and writes one call at once."""


def _mistral(call: str, calls: str, special: tuple[str, ...]) -> Shape:
    """As in Mistral: the tools are before the last turn of the user, and the id of a call has nine characters."""
    return Shape(
        "{{ bos_token }}{% set ns = namespace(last=-1) %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{% if tools and loop.index0 == ns.last %}"
        "[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m['content'] }}[/INST]"
        "{% elif m['role'] == 'tool' %}{% if m['tool_call_id'] | length != 9 %}{{ raise_exception('id') }}{% endif %}"
        '[TOOL_RESULTS] {"content": {{ m["content"] | tojson }}, "call_id": "{{ m["tool_call_id"] }}"}[/TOOL_RESULTS]'
        "{% elif m['tool_calls'] %}" + calls.replace(
            "EACH",
            "{% for c in m['tool_calls'] %}{% if c['id'] is not defined or c['id'] | length != 9 %}"
            "{{ raise_exception('id') }}{% endif %}{% set f = c['function'] %}" + call + "{% endfor %}",
        ) + "</s>{% else %} {{ m['content'] | trim }}</s>{% endif %}{% endfor %}",
        ("</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", *special),
        "</s>",
        " {}",
    )  # fmt: skip


MISTRAL_TOOLS = _mistral(
    "{{ {'name': f['name'], 'arguments': f['arguments'], 'id': c['id']} | tojson }}{% if not loop.last %}, {% endif %}",
    "[TOOL_CALLS] [EACH]",
    (),
)
MISTRAL_ARGS = _mistral(
    "[TOOL_CALLS]{{ f['name'] }}[CALL_ID]{{ c['id'] }}[ARGS]{{ f['arguments'] | tojson }}",
    "EACH",
    ("[CALL_ID]", "[ARGS]"),
)
"""As in Mistral's models since 2025."""

MARKED_THINKING = _thinking("{% generation %}ANSWER{% endgeneration %}\n", _SHOWN)


def tokenizer_of(shape: Shape, pad: bool = False) -> Any:
    """A tokenizer of bytes with the shape's template; `pad` makes the token that ends a turn the padding token too."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(shape.special)})
    if pad:
        tokenizer.eos_token = tokenizer.pad_token = shape.end
    tokenizer.chat_template = shape.template
    return tokenizer
