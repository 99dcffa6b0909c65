"""Cache lengths that grow with the text: a decoding step attends over its whole cache, so a long one costs time.

Each length is a loop of its own to compile, so there are few.
"""

STAGES = 4
SHORTEST = 512  # a shorter stage is not worth compiling a loop


def cache_lengths(length: int, steps: int) -> tuple[int, ...]:
    """The cache's lengths in turn, for prompts of `length` tokens and `steps` new ones; the last one holds all."""
    total = length + steps
    stride = max(SHORTEST, -(-total // STAGES))
    return (*(reached for reached in range(stride, total, stride) if reached > length), total)
