"""Whether a text can be written: Python's strings hold more than UTF-8 does."""


def is_utf8(text: str) -> bool:
    """False with a lone surrogate, half of a character: JSON can spell one, and Python reads broken bytes as such."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
