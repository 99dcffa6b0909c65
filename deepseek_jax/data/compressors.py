"""How well general-purpose compressors compress the held-out text: baselines for a language model."""

import contextlib
import lzma
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from deepseek_jax.data import cache
from deepseek_jax.data.pipeline import Corpus
from deepseek_jax.files import read_json, write_json
from deepseek_jax.reporting import Report, no_report

COMPRESSORS = {
    "gzip -9": lambda: zlib.compressobj(level=9, wbits=16 + zlib.MAX_WBITS),  # 16: with a gzip header
    "xz -9": lambda: lzma.LZMACompressor(preset=9),
}


def bits_per_byte(corpus: Corpus, report: Report = no_report) -> dict[str, dict[str, float]]:
    """compressor -> domain or "total" -> bits per byte, of exactly the bytes that the model's score divides by.

    The total is for all domains compressed as one stream, which is no harder for a compressor than one per domain.
    {} for conversations, as a compressor could not be given the questions for free.
    """
    if corpus.data.chat:
        return {}
    parts = {domain: [domain] for domain in corpus.domains} | {"total": corpus.domains}
    bits = {part: _bits(corpus, domains, report) for part, domains in parts.items()}
    return {name: {part: of[name] for part, of in bits.items() if of} for name in COMPRESSORS}


def total_bits_per_byte(corpus: Corpus, report: Report = no_report) -> dict[str, float]:
    """compressor -> only the total of `bits_per_byte`, which is faster; {} if nothing is held out."""
    return {} if corpus.data.chat else _bits(corpus, corpus.domains, report)


def _bits(corpus: Corpus, domains: Sequence[str], report: Report) -> dict[str, float]:
    """compressor -> bits per byte of the domains as one stream; cached, since xz takes minutes for a gigabyte."""
    size = sum(corpus.held_out_bytes[domain] for domain in domains)
    if not size:
        return {}
    texts = [part.text.name for part in corpus.parts if part.name in domains]  # they contain a hash of all inputs
    kept = cache.root(corpus.data) / "compressed" / f"{cache.digest(texts)}.json"
    if kept.exists():
        sizes = read_json(kept)
    else:
        sizes = _compressed(corpus, domains, report, size)
        with contextlib.suppress(OSError):  # the cache may be read-only, if others prepared the data
            write_json(kept, sizes)
    return {name: 8 * sizes[name] / size for name in COMPRESSORS}


def _compressed(corpus: Corpus, domains: Sequence[str], report: Report, size: int) -> dict[str, int]:
    """compressor -> compressed bytes.  Piece by piece, each compressor in a thread, as they release the GIL."""
    running = {name: make() for name, make in COMPRESSORS.items()}
    sizes, done = dict.fromkeys(running, 0), 0
    with ThreadPoolExecutor(len(running)) as pool:
        for piece in (piece for domain in domains for piece in corpus.held_out_pieces(domain)):
            report("compressing what is held out", done, size)
            given = {name: pool.submit(compressor.compress, piece) for name, compressor in running.items()}
            for name, compressed in given.items():
                sizes[name] += len(compressed.result())
            done += len(piece)
    return {name: sizes[name] + len(compressor.flush()) for name, compressor in running.items()}
