"""The filter list that training reads (`dataset.exclude`): one id per line; # begins a comment for the user."""

import pathlib
from collections.abc import Sequence

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding

HEAD = """\
# Training records of {name} to leave out, for dataset.exclude.  Delete the lines of records that you want to keep;
# lines that begin with # leave nothing out: delete the # in front of an id to leave that record out too.
"""


def write(path: pathlib.Path, records: AllRecords, findings: Sequence[Finding]) -> int:
    """Writes the list; returns how many records it leaves out.  Only training records are listed."""
    certain = [finding for finding in findings if finding.certain]
    # Records left out for their own sake.  If the copy that was to be kept is among them, its duplicates must stay in.
    alone = {place for finding in certain for place in finding.doubtful if place not in finding.kept}
    listed = alone | {place for finding in certain for place, kept in finding.kept.items() if kept not in alone}
    listed = {place for place in listed if records.train[place]}
    lines, written = [HEAD.format(name=records.name)], set()
    for finding in sorted(findings, key=lambda finding: not finding.certain):
        new = {place: why for place, why in finding.doubtful.items() if records.train[place] and place not in written}
        if new:
            lines.append(f"\n# {finding.title}\n")
        for place, why in new.items():
            # A class name may contain newlines, but a comment ends with its line.
            lines.append(f"{'' if place in listed else '# '}{records.ids[place]}  # {' '.join(why.split())}\n")
        written |= new.keys() & listed
    path.write_text("".join(lines), "utf-8")
    return len(listed)
