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
_RANDOM_BITS = 3.6
"""Bits for each character: hexadecimal has up to 4, a word or a path about 3."""


def looks_secret(name: str, value: str) -> bool:
    """Say whether a variable's value is taken for a secret."""
    return bool(value) and bool(_NAMES.search(name) or has_secret_shape(value))


def has_secret_shape(text: str) -> bool:
    """Say whether a known kind of token, or a long random word, is in `text`."""
    if _SHAPES.search(text):
        return True
    return any(_is_random(word) for word in _WORD.findall(text))


def _is_random(word: str) -> bool:
    if "/" in word and not any(char.isdigit() for char in word):
        return False  # a path
    counts, length = Counter(word).values(), len(word)
    bits = -sum(n / length * math.log2(n / length) for n in counts)
    mixed = any(char.isdigit() for char in word) and any(
        char.isalpha() for char in word
    )
    return mixed and bits >= _RANDOM_BITS
