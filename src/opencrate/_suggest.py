"""Did-you-mean for misspelt names; imports nothing heavy, so that the command line can use it at once."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """End of an error message about an unknown name: the nearest known one, or the list of them.

    >>> suggest("hiden_size", ["hidden_size", "pool"])
    "did you mean 'hidden_size'?"
    """
    known = sorted(known)
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"did you mean '{prefix}{close[0]}'?"
    return f"known: {', '.join(known[:60])}" + (f", ... ({len(known)} in all)" if len(known) > 60 else "")
