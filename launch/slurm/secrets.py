"""Recognition of secrets in a cluster file, whose values end up in a script that is kept in the run folder.

By name: words such as TOKEN, AUTH or *_KEY. By shape: prefixes of well-known services, URLs with a password, and long
random strings.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

# Words that are telling inside others (MYPASSWORD), and those that are not (MONKEY, PATH, COMPASS).
_INSIDE = (
    *("TOKEN(?!IZ|S(?:_|$))", "SECRET", "PASSW", "PASSPHRASE", "CREDENTIAL", "WEBHOOK", "COOKIE"),
    *("API_?KEY", "ACCESS_?KEY", "PRIVATE_?KEY", "SECRET_?KEY", "SIGNING_?KEY"),
)
_WORDS = ("PAT", "AUTH", "OAUTH", "BEARER", "JWT", "DSN", "CREDS?")
_LAST = ("PASS", "SESSION", "SESSION_ID")
_AFTER_ANOTHER = ("KEY", "KEYS", "PWD")  # last, but not alone: PWD is the working directory
_NAME = re.compile(
    f"{'|'.join(_INSIDE)}"
    f"|(?:^|_)(?:{'|'.join(_WORDS)})(?:_|$)"
    f"|(?:^|_)(?:{'|'.join(_LAST)})$"
    f"|_(?:{'|'.join(_AFTER_ANOTHER)})$",
    re.IGNORECASE,
)
_LOCATION = re.compile(r"_(?:DIR|FILE|HOME|PATH)$", re.IGNORECASE)  # the path of a secret is not one
_SHAPE = re.compile(
    "|".join(
        [
            r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}",
            r"(?<![A-Za-z0-9])(?:gh[pousr]|github_pat|glpat)[_-][A-Za-z0-9_-]{16,}",
            r"(?<![A-Za-z0-9])sk-(?=[\w-]*\d)[A-Za-z0-9_-]{16,}",  # with a digit: a folder may be called sk-learn-...
            r"(?<![A-Za-z0-9])xox[a-z]-[A-Za-z0-9-]{8,}",
            r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}",
            r"(?<![A-Za-z0-9])AIza[\w-]{30,}",
            r"(?<![A-Za-z0-9])eyJ[\w-]{8,}(?:\.[\w-]+)*",
            r"-----BEGIN[^\n]*",
            r"[a-z][a-z0-9+.-]*://[^\s/:@]*:[^\s/@]+@",
            r"hooks\.slack\.com/services/\S+|discord(?:app)?\.com/api/webhooks/\S+",
            r"\b(?:Bearer|Basic)\s+\S{8,}",
        ]
    )
)
_DIGEST = re.compile(r"(?:sha256:|@)[0-9a-f]{40,64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # images, UUIDs
_RUN = re.compile(r"[A-Za-z0-9]{24,}")
_WHOLE = re.compile(r"[A-Za-z0-9+=_.-][A-Za-z0-9+/=_.-]{31,}")  # not a path, which begins with /
# Entropy in bits per character: 40 random hexadecimal digits have about 3.7, 40 random letters and digits 4.7.
_RUN_BITS, _WHOLE_BITS = 3.2, 4.2


def find(name: str, value: object) -> str | None:
    """Return why a variable looks like a secret, or None; never its value."""
    text = str(value)
    if _NAME.search(name) and not (_LOCATION.search(name) and text.startswith(("/", "~"))):
        return "its name is that of a secret"
    return find_in(text)


def find_in(text: str) -> str | None:
    """Return why a text looks like, or contains, a secret; None if it does not."""
    if _SHAPE.search(text):
        return "its value has the shape of a secret"
    if any(_NAME.search(name) and not _LOCATION.search(name) for name in re.findall(r"([A-Za-z_]\w*)=", text)):
        return "it sets a variable with the name of a secret"
    plain = _DIGEST.sub("", text)
    if any(_is_random(run) for run in _RUN.findall(plain)):
        return "it contains a long random string"
    mixed = sum(map(str.isdigit, plain)) >= 2 and any(map(str.isupper, plain)) and any(map(str.islower, plain))
    if mixed and _WHOLE.fullmatch(plain) and _bits(plain) >= _WHOLE_BITS:
        return "it is a long random string"
    return None


def redact(text: str, variables: Mapping[object, object]) -> str:
    """Return a message without the secrets among the variables, or anything else that looks like one."""
    for name, value in variables.items():
        if len(str(value)) > 3 and find(str(name), value):
            text = text.replace(str(value), "***")
    text = _RUN.sub(lambda run: "***" if _is_random(run[0]) else run[0], text)
    return _SHAPE.sub("***", text)


def _is_random(run: str) -> bool:
    """Return whether letters and digits are mixed as in a random string."""
    return 3 <= sum(map(str.isdigit, run)) <= len(run) - 3 and _bits(run) >= _RUN_BITS


def _bits(text: str) -> float:
    """Return the entropy of the characters in bits per character."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)
