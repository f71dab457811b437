"""Which values of an original's environment are secrets, by their name or their shape.

To take one too many for a secret does no harm: it is then kept as one. So the rules are
wide, and what they miss is what a person has to look for.
"""

from __future__ import annotations

import math
import re
from collections import Counter

_NAMES = re.compile(
    r"(^|_)(TOKEN|SECRET|KEY|APIKEY|PASS|PASSWD|PASSWORD|PASSPHRASE|CREDENTIALS?|AUTH"
    r"|COOKIE|PRIVATE|DSN|WEBHOOK|SALT|PIN|SEED|MNEMONIC)S?(_|$)|(TOKEN|SECRET|PASSWORD"
    r"|APIKEY)$",
    re.IGNORECASE,
)
_SHAPES = re.compile(
    r"\b(sk|pk|rk|ghp|gho|ghu|ghs|ghr|glpat|hf|xai|gsk|npm|pypi|dop_v1|shpat)[-_]"
    r"[A-Za-z0-9_-]{8,}"
    r"|github_pat_\w{20,}|xox[abeprs]-[\w-]{8,}|(AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}|\b\d{6,12}:[A-Za-z0-9_-]{30,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]*:[^/\s@]+@"
)
_WORD = re.compile(r"[A-Za-z0-9+/_=-]{24,}")
_HEXADECIMAL = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_DISTINCT = 8
_RANDOM_BITS = 3.6
"""Bits for each character of a long word; those of a language have about 3."""


def looks_secret(name: str, value: str) -> bool:
    """Say whether a variable's value is taken for a secret."""
    return bool(value) and bool(_NAMES.search(name) or has_secret_shape(value))


def has_secret_shape(text: str) -> bool:
    """Say whether a known kind of token, or a long random word, is in `text`."""
    if _SHAPES.search(text):
        return True
    return any(_is_random(word) for word in _WORD.findall(text))


def _is_random(word: str) -> bool:
    digits = any(char.isdigit() for char in word)
    if _HEXADECIMAL.fullmatch(word):
        return digits and len(set(word)) >= _DISTINCT
    cases = any(char.isupper() for char in word) and any(c.islower() for c in word)
    return digits and cases and _bits(word) >= _RANDOM_BITS


def _bits(word: str) -> float:
    """Return the bits for each character, as its own frequencies have it."""
    counts, length = Counter(word).values(), len(word)
    return -sum(n / length * math.log2(n / length) for n in counts)
