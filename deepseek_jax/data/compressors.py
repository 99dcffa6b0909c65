"""What general compressors make of the held-out text: the scores that a language model has to beat."""

import gzip
import lzma
from collections.abc import Callable

from deepseek_jax.data.pipeline import Corpus

COMPRESSORS = {
    "gzip -9": lambda data: gzip.compress(data, compresslevel=9, mtime=0),
    "xz -9": lambda data: lzma.compress(data, preset=9),
}


def bits_per_byte(corpus: Corpus) -> dict[str, dict[str, float]]:
    """compressor -> domain and "total" -> bits a byte, on exactly the bytes that the model's score divides by.

    The total is of all domains compressed as one stream, which is no worse for a compressor than one a domain.
    {} of conversations: a compressor would have to be told the questions.
    """
    if corpus.data.chat:
        return {}
    texts = {domain: corpus.held_out_text(domain) for domain in corpus.domains}
    texts["total"] = b"".join(texts.values())
    return {
        name: {part: _bits(compress, text) for part, text in texts.items() if text}
        for name, compress in COMPRESSORS.items()
    }


def total_bits_per_byte(corpus: Corpus) -> dict[str, float]:
    """compressor -> the total of `bits_per_byte`, without the time that the domains take; {} if nothing is held out."""
    text = b"" if corpus.data.chat else b"".join(map(corpus.held_out_text, corpus.domains))
    return {name: _bits(compress, text) for name, compress in COMPRESSORS.items() if text}


def _bits(compress: Callable[[bytes], bytes], text: bytes) -> float:
    return 8 * len(compress(text)) / len(text)
