"""The filter list that training reads (`dataset.exclude`): ids, one a line, what follows # is for a person."""

import pathlib
from collections.abc import Sequence

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding

HEAD = """\
# Training records of {name} to leave out, for dataset.exclude.  Delete the lines that you judge otherwise;
# lines that begin with # leave nothing out: delete the # in front of an id to leave that record out too.
"""


def write(path: pathlib.Path, records: AllRecords, findings: Sequence[Finding]) -> int:
    """Writes the list and gives how many records it leaves out; held-out records stay, so they are not in it."""
    listed: dict[int, str] = {}
    lines = [HEAD.format(name=records.name)]
    for finding in sorted(findings, key=lambda finding: not finding.certain):
        new = {place: why for place, why in finding.doubtful.items() if records.train[place] and place not in listed}
        if new:
            lines.append(f"\n# {finding.title}\n")
        off = "" if finding.certain else "# "
        # A class may be named in several lines, and a comment ends with its own.
        lines += [f"{off}{records.ids[place]}  # {' '.join(why.split())}\n" for place, why in new.items()]
        listed |= new if finding.certain else {}
    path.write_text("".join(lines), "utf-8")
    return len(listed)
