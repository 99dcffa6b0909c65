"""Caches that grow with the text: a decoding step attends over all places of its cache, so a large one costs time.

Each length is a loop of its own to compile, hence few of them.
"""

STAGES = 4
SHORTEST = 512  # places: less is not worth a loop


def stages(length: int, steps: int) -> tuple[int, ...]:
    """Places of the caches in turn, for prompts of `length` places and `steps` new tokens; the last holds all."""
    total = length + steps
    stride = max(SHORTEST, -(-total // STAGES))
    return (*(places for places in range(stride, total, stride) if places > length), total)
