"""What a run that may still be training, or was killed, has written to metrics.jsonl."""

import json
from pathlib import Path


def rows(workdir: Path) -> list[dict]:
    """Those that are complete: the last line may be half written."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_step(workdir: Path) -> int:
    return max((row["step"] for row in rows(workdir)), default=0)
