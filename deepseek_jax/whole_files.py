"""Writes files atomically: complete or as they were before, even if the process is killed or the disk is full."""

import json
import os
from pathlib import Path


def write_text(path: Path, text: str):
    _write(path, text.encode())


def write_json(path: Path, content: dict):
    write_text(path, json.dumps(content, indent=1) + "\n")


def copy(source: Path, target: Path):
    """`source` and `target` may be the same file."""
    _write(target, source.read_bytes())


def _write(path: Path, content: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
