"""Every source of text: what it gives, how it is divided, and what is refused."""

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from opencrate.data import hub
from opencrate.data.text.documents import Documents, held_out_by_position
from opencrate.data.text.load import divided
from opencrate.data.text.options import TextData, check_text_data
from opencrate.data.text.sources import read_parts, stdlib_documents

TEXT = "One.\nTwo, too.\n\nThree\n  \nFour é.\n"


def parts_of(path, **options):
    return {part: list(documents) for part, documents in read_parts(TextData(str(path), **options)).items()}


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "book.txt"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", [TEXT]),
        ("line", ["One.", "Two, too.", "Three", "Four é."]),
        ("paragraph", ["One.\nTwo, too.", "Three", "Four é.\n"]),
    ],
)
def test_documents_of_a_text_file(book, document, expected):
    assert parts_of(book, document=document) == {"all": expected}


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path):
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert parts_of(tmp_path / "dos.txt") == {"all": ["one\r\ntwo\r\n"]}


def test_folders_in_parts_and_without(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert parts_of(tmp_path) == {"train": ["train"], "validation": ["valid"], "test": ["test"]}
    (tmp_path / "books").mkdir()
    for name in ("b.txt", "a.md", ".hidden.txt", "picture.png"):
        (tmp_path / "books" / name).write_text(name)
    assert parts_of(tmp_path / "books") == {"all": ["a.md", "b.txt"]}
    with pytest.raises(ValueError, match=r"a\.md: its name says neither train, validation nor test"):
        read_parts(TextData(str(tmp_path)))


def test_tables(tmp_path):
    rows = {"title": ["a", "b"], "text": ["first", "second"], "n": [1, 2]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "table.parquet")
    Dataset.from_dict(rows).to_json(tmp_path / "table.jsonl")
    for file in ("table.parquet", "table.jsonl"):
        assert parts_of(tmp_path / file) == {"all": ["first", "second"]}
        assert parts_of(tmp_path / file, text_column="title", max_documents=1) == {"all": ["a"]}
        with pytest.raises(ValueError, match=r"text\.text_column='n' has no strings; columns that do: title, text"):
            read_parts(TextData(str(tmp_path / file), text_column="n"))


def test_ambiguous_and_missing_columns(tmp_path):
    Dataset.from_dict({"a": ["x"], "b": ["y"]}).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"has the string columns a, b; say which by text\.text_column"):
        read_parts(TextData(str(tmp_path / "two.parquet")))
    Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no column of strings"):
        read_parts(TextData(str(tmp_path / "none.parquet")))


def test_stdlib_is_there_and_in_one_order():
    first, again = list(stdlib_documents()), list(stdlib_documents())
    assert first == again and len(first) > 200
    assert 5_000_000 < sum(map(len, first)) < 20_000_000  # about 10 million, as documented
    assert any("class OrderedDict" in text for text in first)
    assert not any("class IdleConfTest" in text for text in first)


def test_undecodable_bytes_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8 text, .* at byte 3 \(0xe9\)"):
        read_parts(TextData(str(tmp_path / "latin.txt")))


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_empty_corpus(tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(ValueError, match=r"empty\.txt: empty, it contains no text"):
        read_parts(TextData(str(tmp_path / "empty.txt")))


def test_missing_mixed_and_unreadable(tmp_path):
    with pytest.raises(ValueError, match="no such folder or file; give 'stdlib', a text"):
        read_parts(TextData(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="holds no"):
        read_parts(TextData(str(tmp_path)))
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"\n')
    with pytest.raises(ValueError, match=r"several kinds, text \(a.txt\), json lines \(b.jsonl\)"):
        read_parts(TextData(str(tmp_path)))
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: damaged \(not JSON"):
        read_parts(TextData(str(tmp_path / "b.jsonl")))
    (tmp_path / "c.parquet").write_text("c")
    with pytest.raises(ValueError, match=r"c\.parquet: not a readable parquet file"):
        read_parts(TextData(str(tmp_path / "c.parquet")))


def test_held_out_by_position():
    whole = Documents("here", lambda: iter(["abcde", " ", "fghij"]), lambda: "x")
    train, validation, test = held_out_by_position(whole, 0.2, 0.1)
    assert (list(train), list(validation), list(test)) == (["abcde", "fg"], ["hi"], ["j"])
    assert train.characters == 7 and len({train.identity, validation.identity, test.identity}) == 3
    assert held_out_by_position(whole, 0, 0) == (whole, None, None)
    with pytest.raises(ValueError, match="here, test part: empty"):
        held_out_by_position(whole, 0.2, 0.001)


def test_own_parts_are_kept_and_missing_ones_cut_from_the_training_part(tmp_path):
    (tmp_path / "train.txt").write_text("abcdefghij")
    (tmp_path / "test.txt").write_text("test")
    parts = divided(TextData(str(tmp_path), validation_fraction=0.3, test_fraction=0.5))
    assert {part: list(texts) for part, texts in parts.items()} == {
        "train": ["abcdefg"],
        "validation": ["hij"],
        "test": ["test"],
    }
    with pytest.raises(ValueError, match="has no train part, only test"):
        (tmp_path / "train.txt").unlink()
        divided(TextData(str(tmp_path)))


def test_identity_follows_content_not_place(tmp_path):
    def identity(folder, content, **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.txt").write_text(content)
        return read_parts(TextData(str(tmp_path / folder / "a.txt"), **options))["all"].identity

    same = identity("x", "one")
    assert identity("y", "one") == same
    others = {identity("x", "two"), identity("x", "one", document="line"), identity("x", "one", max_documents=3)}
    assert len({same, *others}) == 4


class FakeApi:
    def dataset_info(self, name):
        return type("Info", (), {"sha": f"sha of {name}"})


@pytest.fixture(name="hub")
def hub_fixture(monkeypatch):
    """`hf://owner/name` gives these tables; no network."""
    asked = []

    def install(loaded):
        def load_dataset(*names, streaming):
            asked.append((names, streaming))
            if isinstance(loaded, Exception):
                raise loaded
            return loaded

        monkeypatch.setattr(hub.datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(hub, "HfApi", FakeApi)
        return asked

    return install


def test_hub_splits_and_configurations(hub):
    table = Dataset.from_dict({"text": ["one", "two"]})
    asked = hub(DatasetDict(train=table, validation=table.select([1]), unsupervised=table))
    assert parts_of("hf://owner/name/config") == {"train": ["one", "two"], "validation": ["two"]}
    assert asked == [(("owner/name", "config"), False)]
    hub(DatasetDict(first=table, second=table))
    with pytest.raises(ValueError, match="its splits are first, second"):
        parts_of("hf://owner/name")
    with pytest.raises(ValueError, match="not of the form hf://owner/name"):
        parts_of("hf://name")
    hub(datasets.exceptions.DatasetNotFoundError("gone"))
    with pytest.raises(ValueError, match=r"cannot be had from the Hugging Face Hub \(gone\)"):
        parts_of("hf://owner/name")


def test_streaming_reads_no_more_than_asked_for(hub):
    read = []

    def rows():
        for number in range(1000):
            read.append(number)
            yield {"text": f"text {number}"}

    hub({"train": IterableDataset.from_generator(rows)})
    data = TextData("hf://owner/name", streaming=True, max_documents=10, validation_fraction=0.2, test_fraction=0.1)
    parts = {part: list(texts) for part, texts in divided(data).items()}
    assert parts["validation"] == ["text 0", "text 1"] and parts["test"] == ["text 2"]
    assert parts["train"] == [f"text {number}" for number in range(3, 10)]
    assert max(read) < 20
    with pytest.raises(ValueError, match=r"give text\.max_documents"):
        divided(TextData("hf://owner/name", streaming=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"validation_fraction": 1.0}, r"text\.validation_fraction=1\.0: must be a number of at least 0 and below 1"),
        ({"validation_fraction": 0.6, "test_fraction": 0.6}, r"text\.test_fraction=0\.6"),
        ({"block_size": 1}, r"text\.block_size=1: must be a whole number of at least 2"),
        ({"mask_probability": 0.0}, r"text\.mask_probability=0\.0"),
        ({"max_documents": 0}, r"text\.max_documents=0"),
        ({"streaming": True}, r"text\.streaming=True: must be true only with a path hf://"),
    ],
)
def test_impossible_options(options, expected):
    with pytest.raises(ValueError, match=expected):
        check_text_data(TextData(**options))
