"""A small byte-level tokenizer with a chat template, made here: each byte is a token, some words are too."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

END, START, PAD = "<|im_end|>", "<|im_start|>", "<pad>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Ids below 3 are special (<pad>, start, end of a turn), then the 256 bytes, then a few words."""
    characters = bytes_to_unicode()
    vocab = {name: at for at, name in enumerate((PAD, START, END))}
    for byte in range(256):
        vocab[characters[byte]] = len(vocab)
    merges: list[tuple[str, str]] = []
    for word in ("he", "ll", "hell", "hello", " w", " wo", " a", "é"):
        coded = "".join(characters[byte] for byte in word.encode())
        left = next(coded[:at] for at in range(len(coded) - 1, 0, -1) if coded[:at] in vocab and coded[at:] in vocab)
        merges.append((left, coded[len(left) :]))
        vocab[coded] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (PAD, START, END)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=template)
