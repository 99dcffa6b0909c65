"""What could not be read of a source, and how to say so."""

import collections


class Skipped:
    """Counts skipped records by reason, and keeps the first places as `file:line: reason`.

    `read`: bytes of the files read so far, skipped or not.
    """

    PLACES = 100

    def __init__(self):
        self.reasons = collections.Counter()
        self.places: list[str] = []
        self.read = 0

    def add(self, path, line: int, reason: str):
        self.reasons[reason] += 1
        if len(self.places) < self.PLACES:
            self.places.append(f"{path}:{line}: {reason}")

    def count(self, size: int):
        self.read += size

    def as_dict(self) -> dict:
        return {"count": self.reasons.total(), "reasons": dict(self.reasons), "places": self.places}


def skipped_sentence(skipped: dict) -> str:
    """A sentence on Skipped.as_dict for the user, without its full stop; "" if nothing was skipped."""
    count, places = skipped["count"], skipped["places"]
    return f"{records_were(count)} skipped, the first: {places[0]}" if count else ""


def records_were(count: int) -> str:
    """The beginning of a sentence on `count` records: "1 record was" or "5 records were"."""
    return "1 record was" if count == 1 else f"{count:,} records were"
