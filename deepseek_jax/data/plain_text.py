"""Text from outside: whether UTF-8 can hold it, and its lines."""


def is_utf8(text: str) -> bool:
    """False with a lone surrogate, half of a character: JSON can spell one, and Python reads broken bytes as such."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lines(text: str) -> list[str]:
    """The lines that are not blank; str.splitlines would also cut at marks inside of a text."""
    return list(numbered_lines(text).values())


def numbered_lines(text: str) -> dict[int, str]:
    """The same by their numbers, from 1, blank lines counted."""
    return {number: line.rstrip("\r") for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
