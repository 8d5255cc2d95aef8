"""Tokenizers whose chat templates speak of tools in the format of one family."""

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from clients.gateway.tool_formats import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, Format
from tests.clients.gateway.bytes_tokenizer import CHAT_TEMPLATE, bytes_tokenizer

__all__ = ["TEMPLATES", "spoken"]

TEMPLATES = {  # what tells a format, as comments behind a template that works
    HERMES: "{# tools <tool_call> #}",
    LLAMA: "{# tools <|python_tag|> #}",
    MISTRAL: "{# tools [TOOL_CALLS] #}",
    MISTRAL_NAMED: "{# tools [TOOL_CALLS] [ARGS] #}",
}
SPECIAL = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]")


def spoken(form: Format, *, special: bool = False) -> PreTrainedTokenizerFast:
    """Its marks are tokens of their own, which are "special" or not."""
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE + TEMPLATES[form]
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in SPECIAL])
    return tokenizer
