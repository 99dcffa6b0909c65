"""A syntactic transform without a parser: it exchanges the two clauses of an English sentence.

    Although the bucket is empty, it cannot be deleted.   It cannot be deleted, although the bucket is empty.
    If you omit it, the default is used.                  The default is used if you omit it.

Pronouns stay where they are.  Only sentences whose structure is clear from words and commas alone are changed.
"""

import re

# Words that open a clause wherever they are.  `when`, `while`, `since`, `after`, `before`, `until` and `as` are only in
# IN_FRONT: in the middle of a sentence they often belong to a noun or a time ("the date when it ends").
CONTRAST = ("although", "though", "whereas", "even though")  # take a comma also after the main clause
ANYWHERE = (*CONTRAST, "if", "because", "unless", "even if")
IN_FRONT = (*ANYWHERE, "when", "while", "since", "after", "before", "until", "once")
# After these, `if` introduces a question ("indicates if it is on"), and its clause cannot be moved.
ASKING = set(
    "whether indicate indicates indicating specify specifies specifying determine determines determining check checks "
    "checking see sees seeing know knows ask asks decide decides tell tells only even as and or but".split()
)
# First words that have a capital only because they begin the sentence.
OPENERS = set(
    "a an the this that these those it its you your we our they their he she his her there each every all any some no "
    "use specify set if when in on at for to by with".split()
)
OPENING = re.compile(rf"({'|'.join(IN_FRONT)}) ", re.IGNORECASE)
MIDDLE = re.compile(rf",? \b({'|'.join(sorted(ANYWHERE, key=len, reverse=True))}) ")  # "even if" before "if"
COMMA = re.compile(r",\s")  # not a comma inside a number or name
SENTENCE = re.compile(r".+?(?:[.!?]+\s+|\Z)", re.DOTALL)  # does not end at a full stop inside a name or number
SHORTEST = 3  # words of a clause with its opening word; a main clause, which has none, needs one less


def sentences(text: str) -> list[str]:
    """`text` split into sentences, each with the spaces that follow it: joined, they are `text` again."""
    return SENTENCE.findall(text)


def reorder(sentence: str) -> str | None:
    """The sentence with its clauses exchanged, or None if its structure is unclear."""
    match = re.fullmatch(r"(.*?)([.!?]*)(\s*)", sentence, re.DOTALL)
    body, end, space = match.groups()
    changed = _front_to_back(body) or _back_to_front(body)
    return changed and changed + end + space


def _front_to_back(body: str) -> str | None:
    """ "Although A, B" -> "B, although A"; None if there are several commas, as any of them may end A."""
    opening = OPENING.match(body)
    parts = COMMA.split(body)
    if not opening or len(parts) != 2:
        return None
    opener = opening[1].lower()
    clause, main = (part.strip() for part in parts)
    if _short(clause, len(opener.split())) or _short(main) or main.split()[0].lower() in ("then", "and", "or", "but"):
        return None
    comma = "," if opener in CONTRAST else ""
    return f"{main[0].upper()}{main[1:]}{comma} {clause[0].lower()}{clause[1:]}"


def _back_to_front(body: str) -> str | None:
    """ "B, although A" -> "Although A, B"; None if there are other commas or several words such as `although`."""
    found = list(MIDDLE.finditer(body))
    if len(found) != 1 or len(COMMA.findall(body)) > found[0].group().count(","):
        return None
    main, clause = body[: found[0].start()], body[found[0].start() :].lstrip(", ")
    if _short(main) or _short(clause, 1) or main.split()[-1].lower() in ASKING:
        return None
    first = main.split()[0]
    main = main[0].lower() + main[1:] if first.lower() in OPENERS else main
    return f"{clause[0].upper()}{clause[1:]}, {main}"


def _short(clause: str, besides: int = 0) -> bool:
    return len(clause.split()) - besides < SHORTEST - 1
