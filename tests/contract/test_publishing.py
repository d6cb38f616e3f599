"""Both distributions as a package index would show them: metadata, README, addresses, and what the archives hold."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "weights" / "pyproject.toml").is_file():
    pytest.skip("no weights/ here: not a copy of the repository", allow_module_level=True)

PROJECTS = {"opencrate": ROOT, "opencrate-weights": ROOT / "weights"}
TOOLS = all(importlib.util.find_spec(name) for name in ("build", "twine"))
FILES = ("pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "mkdocs.yml", "weights/pyproject.toml")
FILES += ("weights/README.md", "weights/LICENSE")


def metadata_of(folder):
    """What a build writes, without the build."""
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(folder), PluginManager()).core


def set_address(root, address):
    spec = importlib.util.spec_from_file_location("set_address", ROOT / "docs" / "set_address.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.set_address(root, address)


@pytest.fixture
def copy(tmp_path):
    """The files that an address goes into."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def targets(text):
    return re.findall(r"\]\(([^)\s]+)", text)


@pytest.mark.parametrize("name", PROJECTS)
def test_classifiers_are_known_and_complete(name):
    classifiers = pytest.importorskip("trove_classifiers").classifiers
    core = metadata_of(PROJECTS[name])
    assert core.name == name and set(core.classifiers) <= classifiers
    groups = {one.partition(" ::")[0] for one in core.classifiers}
    wanted = {"Development Status", "Intended Audience", "Operating System", "Programming Language", "Topic", "Typing"}
    assert groups == wanted, "the licence is an expression, which replaces its classifier"
    assert core.license_expression == "MIT" and core.license_files == ["LICENSE"]
    assert core.readme_content_type == "text/markdown" and len(core.description) < 512


@pytest.mark.parametrize("name", PROJECTS)
def test_readme_has_no_link_that_leads_nowhere(name):
    text = metadata_of(PROJECTS[name]).readme
    assert not [one for one in targets(text) if not one.startswith(("https://", "#"))]
    assert "<img" not in text and "../" not in text


def test_one_script_sets_every_address(copy):
    before = {name: (copy / name).read_text() for name in FILES}
    found = re.compile(r"https://example\.org/[\w/]+")
    for address in ("https://example.org/first/name", "https://example.org/second/name"):  # also where there is one
        set_address(copy, address)
        for folder in (copy, copy / "weights"):
            urls = metadata_of(folder).urls
            assert urls["Repository"] == address and all(url.startswith(address) for url in urls.values())
        written = {name for name in FILES if found.search((copy / name).read_text())}
        assert written == {"pyproject.toml", "weights/pyproject.toml", "CITATION.cff", "mkdocs.yml"}
        assert {found.search((copy / name).read_text())[0] for name in written} == {address}
        assert "their text stays" not in (copy / "pyproject.toml").read_text()
    readme, original = metadata_of(copy).readme, before["README.md"]
    assert len(targets(readme)) == len(targets(original))
    for link, source in zip(targets(readme), targets(original)):
        if source.startswith(("https://", "#")):
            assert link == source
        else:
            kind = "raw" if source.endswith(".png") else "blob"
            assert link == f"{address}/{kind}/main/{source}" and (ROOT / source.partition("#")[0]).exists()
    assert metadata_of(copy).dependencies == metadata_of(ROOT).dependencies


@pytest.mark.parametrize(
    "address", ["http://example.org/a/b", "https://example.org/a/b/", "example.org", "https://x y/z"]
)
def test_other_words_are_refused(copy, address):
    with pytest.raises(ValueError, match="give the repository's address"):
        set_address(copy, address)
    assert (copy / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()


def test_install_line_says_what_holds():
    """Until the package is published, it is installed from a copy of the repository."""
    published = "Repository" in (metadata_of(ROOT).urls or {})
    first = re.search(r"^pip install .*$", (ROOT / "README.md").read_text(), re.MULTILINE)[0]
    assert published or ("pip install ." in first and "not on PyPI yet" in first)


@pytest.mark.skipif(not TOOLS, reason="needs build and twine, which the test environment leaves out")
@pytest.mark.parametrize("name", PROJECTS)
def test_build_and_twine(name, tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(PROJECTS[name])]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    files = sorted(tmp_path.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    check = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, files)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout
    wheel = zipfile.ZipFile(files[0]).namelist()
    package = name.replace("-", "_")
    assert {one.split("/")[0] for one in wheel} == {
        package,
        f"{package}-{metadata_of(PROJECTS[name]).version}.dist-info",
    }, "no tests, no data sets"
    assert f"{package}/py.typed" in wheel and any(one.endswith("licenses/LICENSE") for one in wheel)
    with tarfile.open(files[1]) as archive:
        names = archive.getnames()
    assert any(one.endswith("/LICENSE") for one in names) and any(one.endswith("/README.md") for one in names)
    assert name != "opencrate" or not [one for one in names if "opencrate_weights" in one]
