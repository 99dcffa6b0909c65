"""Finds collectives in a compiled program that XLA's CPU runtime may confuse; deepseek_jax/parallel/order.py says why.

Running the program shows this unreliably, as it is a race between devices.
"""

import re

from deepseek_jax.pods import hlo
from deepseek_jax.pods.collectives import SENT


def unordered(text: str) -> list[str]:
    """ "A beside B" for every loop or conditional A and later instruction B that may confuse their collectives.

    That is, both use the same kind of collective on the same channel, and B does not depend on A's result.
    """
    program, found = hlo.parse(text), []
    for computation in program.computations.values():
        each = list(computation.values())
        for place, outer in enumerate(each):
            if outer.opcode in SENT or not (inside := sent_by(program, outer)):
                continue
            after = {outer.name}
            for later in each[place + 1 :]:
                if after & set(later.operands):
                    after.add(later.name)
                elif inside & sent_by(program, later):
                    found.append(f"{outer.name} beside {later.name}")
    return found


def sent_by(program: hlo.Program, each: hlo.Instruction) -> set[tuple[str, str]]:
    """The (kind, channel) of every collective of an instruction, including those in the computations it calls."""
    if each.opcode in SENT:
        return {(each.opcode, re.search(r"channel_id=(\d+)", each.attributes)[1])}
    called = [inner for name in each.called for inner in program.computations[name].values()]
    return set().union(*(sent_by(program, inner) for inner in called))
