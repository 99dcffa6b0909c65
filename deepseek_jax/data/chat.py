"""Conversations as text with control tokens, and a mask of the assistant's tokens, which are the ones trained on.

A conversation is a list of {"role", "content"}: an optional "system" message, then "user" and "assistant" in turns,
ending with the assistant, whose messages may also have "reasoning_content".  Control tokens are looked up by name; if
the tokenizer lacks one, its name is spelled in ordinary tokens.
"""

import dataclasses
import json
import re

import numpy as np

from deepseek_jax.data.plain_text import is_utf8
from deepseek_jax.data.tokenizer import SPECIAL, Tokenizer

USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, THOUGHT = "<think>", "</think>"
CONTROL = (SPECIAL["bos"], SPECIAL["eos"], USER, ASSISTANT, THINK, THOUGHT)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Part of a rendered conversation.  `control`: `text` is the name of a token; `answer`: the assistant says it."""

    text: str
    control: bool = False
    answer: bool = False


def checked(messages) -> list[dict]:
    """Returns the conversation if it is valid; else ValueError with the reason."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("not a list of messages")
    if not in_turns([message.get("role") for message in messages]):
        raise ValueError("not user and assistant in turns")
    texts = [text for message in messages for text in (message.get("content"), _thoughts(message))]
    if not all(isinstance(text, str) for text in texts) or not messages[-1]["content"].strip():
        raise ValueError("a message without text")
    if not all(map(is_utf8, texts)):
        raise ValueError("not UTF-8")
    return messages


def in_turns(roles: list[str]) -> bool:
    """Whether these are the roles of a conversation that ends with the assistant."""
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return bool(turns) and turns == ["user", "assistant"] * (len(turns) // 2)


def render(messages: list[dict], template: str) -> list[Piece]:
    """The pieces of a conversation, without the first bos and last eos, which packing puts around every document.

    `template` is one of config.CHAT_TEMPLATES; v3.2 and v4 differ only in tool calls, which are not supported here.
    """
    pieces, last = [], len(messages) - 1
    for number, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "system":
            pieces.append(Piece(content))
        elif message["role"] == "user":
            pieces += [Piece(USER, control=True), Piece(content)]
        else:
            # The reasoning of earlier turns is left out, as it is at inference.
            thoughts = _thoughts(message) if number == last and reasons(messages, template) else ""
            pieces += [Piece(ASSISTANT, control=True), *_opening(template, thoughts), Piece(content, answer=True)]
            pieces += [Piece(SPECIAL["eos"], control=True, answer=True)] if number < last else []
    return pieces


def reasons(messages: list[dict], template: str) -> bool:
    """Whether the last message, the assistant's, begins with reasoning."""
    return has_reasoning(template) and bool(_thoughts(messages[-1]))


def has_reasoning(template: str) -> bool:
    """Whether an answer may begin with reasoning in this template; "", no conversations, has none."""
    return template not in ("", "v3")


def _thoughts(message: dict) -> str:
    """The reasoning of a message; some datasets have null for none."""
    return message.get("reasoning_content") or ""


def _opening(template, thoughts) -> list[Piece]:
    if not has_reasoning(template):
        return []
    if not thoughts:
        return [Piece(THOUGHT, control=True)]
    opening = Piece(THINK, control=True), Piece(thoughts, answer=True), Piece(THOUGHT, control=True, answer=True)
    return list(opening)


def prompt(messages: list[dict], template: str, tokenizer: Tokenizer, think: bool = False) -> list[int]:
    """Token ids of a prompt, from bos up to where the assistant begins; `messages` must end with the user's.

    `think`: it begins with its reasoning, which the template v3 does not have.
    """
    return [tokenizer.bos, *encode(_asked(messages, template, think), tokenizer)[0]]


def spell(messages: list[dict], template: str, think: bool = False) -> str:
    """As `prompt`, but as text, in which bos and control tokens stand by name.

    If the assistant's message is the last, the text ends with it and is to be continued.
    """
    begun = messages[-1]["role"] == "assistant"
    pieces = render(messages, template) if begun else _asked(messages, template, think)
    return SPECIAL["bos"] + "".join(piece.text for piece in pieces)


def encode_spelled(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a text as `spell` makes it.  Every name of a control token means that token, a user's too."""
    parts = re.split(f"({'|'.join(map(re.escape, CONTROL))})", text)
    return encode([Piece(part, control=part in CONTROL) for part in parts if part], tokenizer)[0]


def _asked(messages: list[dict], template: str, think: bool) -> list[Piece]:
    """The pieces of a prompt, without bos."""
    opening = [Piece(THINK, control=True)] if think else _opening(template, "")
    return [*render(messages, template), Piece(ASSISTANT, control=True), *opening]


def encode(pieces: list[Piece], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(token ids, for each 1 if the assistant says it, else 0).

    Each piece is encoded separately, so that no token is partly question and partly answer.
    """
    ids, answers = [], []
    for piece in pieces:
        named = tokenizer.token(piece.text) if piece.control else None
        new = tokenizer.encode(piece.text) if named is None else [named]
        ids += new
        answers += [int(piece.answer)] * len(new)
    return ids, answers


def encode_document(text: str, template: str, tokenizer: Tokenizer) -> tuple[list[int], np.ndarray, int]:
    """(token ids, answers as in `encode`, UTF-8 bytes of what the assistant says) of a conversation in JSON."""
    pieces = render(json.loads(text), template)
    said = sum(len(piece.text.encode()) for piece in pieces if piece.answer and not piece.control)
    ids, answers = encode(pieces, tokenizer)
    return ids, np.asarray(answers, np.uint8), said
