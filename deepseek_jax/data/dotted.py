"""Values inside a record: a key, or a dotted path of keys such as `answers.text`."""


def value_at(record: object, path: str) -> object:
    """What a record (of JSON, or a row of Parquet) has under `path`; of a list on the way, what each entry has.

    A key that itself has dots comes before a path.  What is null has nothing but None below it.  KeyError if a key is
    missing.
    """
    if record is None:
        return None
    if isinstance(record, list):
        return [value_at(entry, path) for entry in record]
    if not isinstance(record, dict):
        raise KeyError(path)
    if path in record:
        return record[path]
    key, dot, below = path.partition(".")
    if not dot:
        raise KeyError(path)
    return value_at(record[key], below)


def has(record: object, path: str) -> bool:
    """Whether `value_at` finds something under `path`, if only null, in a record; False for anything but a dict."""
    try:
        value_at(record, path)
    except KeyError:
        return False
    return isinstance(record, dict)


def top_key(keys, path: str) -> str:
    """That of the outermost `keys` under which `value_at` finds `path`; "" if there is none."""
    first = path.partition(".")[0]
    return path if path in keys else first if first in keys else ""
