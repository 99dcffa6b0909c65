"""Text from outside: whether it can be encoded in UTF-8, and its lines."""


def is_utf8(text: str) -> bool:
    """False if it has a lone surrogate (half a character): JSON may contain one, and Python decodes broken bytes so."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lines(text: str) -> list[str]:
    """The lines that are not blank; str.splitlines would also split at other characters, such as form feeds."""
    return list(numbered_lines(text).values())


def numbered_lines(text: str) -> dict[int, str]:
    """The lines that are not blank, by line number from 1."""
    return {number: line.rstrip("\r") for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
