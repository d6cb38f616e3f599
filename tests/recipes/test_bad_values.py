"""Every key of a recipe against values that nobody means: one clear line, before anything runs."""

import time

import pytest

from opencrate.recipe.load import load_recipe, recipe_yaml
from opencrate.recipe.strict_yaml import LARGEST_FILE, read_mapping

from ..bad_values import complaint, recipe_cases, thinned

HOMES = {"text": "text-demo", "glue": "glue"}
"""Section -> a recipe that reads it; digits for the others."""


def outcome(load, *names):
    """The error of a call, which is a clear line about these names; `None` where there is none."""
    try:
        load()
    except ValueError as error:
        assert complaint(str(error), *names) is None, (complaint(str(error), *names), str(error))
        return str(error)
    return None


def check(key, value, refused, path):
    """One value as a word of the command line and in a file."""
    section, _, name = key.rpartition(".")
    home = HOMES.get(section, "digits")
    as_word = outcome(lambda: load_recipe(home, [f"{key}={value}"]), key)
    assert as_word or not refused, f"{key}={value[:50]} was accepted"
    lines = f"base: {home}\n" + (f"{section}:\n  {name}: {value}\n" if section else f"{key}: {value}\n")
    path.write_bytes(lines.encode("utf-8", "surrogateescape"))
    in_file = outcome(lambda: load_recipe(path), path.name)
    assert in_file or not refused, f"{key}: {value[:50]} was accepted"


@pytest.mark.parametrize("share", range(4))
def test_no_key_takes_nonsense(share, tmp_path):
    for case in thinned(recipe_cases(), 120)[share::4]:
        check(*case, tmp_path / "bad.yaml")


@pytest.mark.slow
def test_no_key_takes_any_nonsense(tmp_path):
    for case in recipe_cases():
        check(*case, tmp_path / "bad.yaml")


def bomb(levels):
    """YAML of which every level names the one before it ten times: 10 ** levels words when it is read."""
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(30).encode(), "line 1: not a readable YAML file (anchors and aliases"),
        (b"training: {<<: {seed: 1}}", "unknown key 'training.<<'"),
        (b"training: &t {seed: 1}", "anchors and aliases"),
        (b"training: !!map {seed: 1}", "tags"),
        (b"training: {seed: 1}\n---\ntraining: {seed: 2}", "line 2: not a readable YAML file (a second document"),
        (b"training:\n\tseed: 1", "line 2: not a readable YAML file (a tab"),
        (b"training: {seed: 1}\ntraining: {seed: 2}", "line 2: not a readable YAML file ('training' stands twice)"),
        (b"training: {[1]: 1}", "keys are words"),
        (b"a: b: c", "a colon where none may stand"),
        (b"training: {seed: 1", "it ends too early"),
        (b"training: {seed: 1\0}", "the character '\\x00' may not stand there"),
        ("training: {seed: 1}".encode("utf-16"), "not UTF-8 text, at byte 0"),
        (b"name: \xff", "not UTF-8 text, at byte 6"),
        (b"", "a recipe is a mapping"),
        (b"null", "a recipe is a mapping"),
        (b"- 1", "a recipe is a mapping"),
        (b"a: " + b"[" * 10_000, "lists and mappings inside each other"),
        (b"a: " + b"9" * (LARGEST_FILE + 1), "at most 131,072 bytes"),
        (b"training: {seed: " + b"9" * 100_000 + b"}", "'training.seed' must be a whole number"),
        (b"k" * 100_000 + b": 1", "not a readable YAML file"),
        (b"? " + b"k" * 2000 + b"\n: 1", "unknown key"),
        (b"1: 2", "unknown key '1'"),
        (b"null: 2", "unknown key"),
        (b"training: {true: 2}", "unknown key"),
        (b"base: null", "'base' must be one recipe's name"),
        (b'base: "a\\0b"', "'base' must be one recipe's name"),
        (b"base: " + b"b" * 100_000, "no recipe"),
        (b"parameters: -1", "'parameters' must be a number"),
        (b"smok: {training: {seed: 1}}", "unknown key 'smok'"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_a_file_is_read_within_bounds_or_refused_in_words(content, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    start = time.process_time()
    error = outcome(lambda: load_recipe(path), "bad.yaml")
    assert error is not None and words in error
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "content", ["\ufefftraining: {seed: 3}", "training:\r\n  seed: 3\r\n", "---\ntraining: {seed: 0x3}\n...\n"]
)
def test_marks_of_other_editors_are_read(content, tmp_path):
    (tmp_path / "good.yaml").write_bytes(content.encode())
    assert load_recipe(tmp_path / "good.yaml").training.seed == 3


@pytest.mark.parametrize(
    "word", ["2020-01-01", "1e5", "0o17", "12:30", "no", "null", "1_000", "<<", "~", "0x1", ".inf"]
)
def test_words_that_look_like_something_else_come_back(word, tmp_path):
    recipe = load_recipe("digits", [f"description='{word}'"])
    (tmp_path / "again.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe and recipe.description == word
    assert read_mapping(tmp_path / "again.yaml")["description"] == word


def test_what_was_read_before_is_not_changed_by_its_reader(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {seed: 1, steps: [1, 2]}\n")
    first = read_mapping(tmp_path / "a.yaml")
    first["training"]["steps"].append(3)
    first["training"]["seed"] = 2
    assert read_mapping(tmp_path / "a.yaml") == {"training": {"seed": 1, "steps": [1, 2]}}
