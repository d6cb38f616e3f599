"""Set the repository's public address, everywhere that it belongs: `python docs/set_address.py https://HOST/OWNER/NAME`.

That is in the metadata of both distributions (project URLs, and links of the README on the package index), in
CITATION.cff and on the site. Until it is run there is no address anywhere; run again, it replaces the one before.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECTS = ("pyproject.toml", "weights/pyproject.toml")
_FIRST_SECTION = "[tool.hatch.build.targets.wheel]"
_LINK = r"\[([^\]]*)\]\((?!https?://|#)([^)\s]*)\)"
_SUBSTITUTIONS = """[[tool.hatch.metadata.hooks.fancy-pypi-readme.substitutions]]
pattern = '!{link}'
replacement = '![\\1]({address}/raw/main/\\2)'

[[tool.hatch.metadata.hooks.fancy-pypi-readme.substitutions]]
pattern = '{link}'
replacement = '[\\1]({address}/blob/main/\\2)'

"""


def set_address(root: Path, address: str) -> None:
    """Write the address into the files below `root`.

    Raises:
        ValueError: it is no https address of a repository.
    """
    if not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+){1,3}", address):
        raise ValueError(
            f"{address}: give the repository's address, such as https://HOST/OWNER/NAME without a / at its end"
        )
    for name in PROJECTS:
        path = root / name
        text = re.sub(r"\[project\.urls\]\n(?:\w.*\n)*\n", "", path.read_text(encoding="utf-8"))
        text = text.replace(_FIRST_SECTION, _urls(address) + _FIRST_SECTION, 1)
        path.write_text(_with_links(text, address), encoding="utf-8")
    _replace_line(root / "CITATION.cff", "repository-code", f'"{address}"', after="license")
    _replace_line(root / "mkdocs.yml", "repo_url", address, after="site_description")


def _urls(address: str) -> str:
    pages = {"Repository": "", "Documentation": "/blob/main/docs/index.md", "Changelog": "/blob/main/CHANGELOG.md"}
    pages["Issues"] = "/issues"
    return "[project.urls]\n" + "".join(f'{name} = "{address}{end}"\n' for name, end in pages.items()) + "\n"


def _with_links(text: str, address: str) -> str:
    """The README's relative links made absolute: in the file that turned them into plain text."""
    section = r"\[\[tool\.hatch\.metadata\.hooks\.fancy-pypi-readme\.substitutions\]\]\n(?:\w.*\n)+\n"
    made = _SUBSTITUTIONS.format(link=_LINK, address=address)
    return re.sub(rf"(?:# Links to files[^\[]*)?(?:{section})+", lambda found: made, text, count=1)


def _replace_line(path: Path, key: str, value: str, after: str) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(f"{key}:")]
    place = next(number for number, line in enumerate(lines) if line.startswith(f"{after}:")) + 1
    path.write_text("\n".join([*lines[:place], f"{key}: {value}", *lines[place:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        set_address(ROOT, sys.argv[1])
    except ValueError as error:
        sys.exit(f"set_address: {error}")
