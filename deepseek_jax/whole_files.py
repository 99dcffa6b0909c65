"""Files that are there whole or as they were before, also where the process is killed or the disk is full."""

import json
import os
from pathlib import Path


def write_text(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, content: dict):
    write_text(path, json.dumps(content, indent=1) + "\n")
