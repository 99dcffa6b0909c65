"""The workers' side of a contest: standard library only, for it runs under the rivals' Python too."""

import json
import os
import sys
import time


def serve(about, play):
    """Tells `about`, then answers each line of JSON arguments with what `play(**arguments)` measured, until stdin ends.

    Whatever else writes to standard output, from here on it reaches standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(play(**json.loads(line))), file=answers, flush=True)


class Stopwatch:
    """Wall and process CPU seconds of each pass through `with stopwatch:`."""

    def __init__(self):
        self.measured = {"seconds": [], "cpu_seconds": []}

    def __enter__(self):
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *_):
        self.measured["seconds"].append(time.perf_counter() - self.start[0])
        self.measured["cpu_seconds"].append(time.process_time() - self.start[1])
