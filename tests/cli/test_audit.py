"""`opencrate audit`: files, table, words, and what is refused."""

import json
import tempfile
from pathlib import Path

from opencrate import CrateImageProcessor

from ..analysis.models import tiny_autoencoder

QUICK = ("--num-images", 40, "--num-tokens", 240, "--layers", 2)


def test_audit_of_a_run(opencrate, digits_run, tmp_path):
    out = tmp_path / "audit"
    result = opencrate("audit", digits_run, *QUICK, "--output", out)
    assert result.code == 0, result.err
    assert (
        "CRATE (digits): learned U, LN(Z^ℓ), 40 images" in result.out and f"report: {out / 'audit.html'}" in result.out
    )
    assert "The assumed mixture on these subspaces fits better" in result.out
    (found,) = json.loads((out / "audit.json").read_text())
    assert {row["layer"] for row in found["rows"]} == {2} and found["data"] == "digits"
    conditions = {row["measure"].split(".")[1] for row in found["rows"] if row["measure"].startswith("gain.")}
    assert conditions == {"trained", "shuffled", "untrained"}

    again = opencrate("audit", digits_run, *QUICK, "--output", out)
    assert again.code == 2 and "audit.html: exists" in again.err and "--overwrite" in again.err


def test_what_is_refused(opencrate, digits_run, plain_crate, tmp_path):
    def refused(*words):
        result = opencrate("audit", *words, "--output", tmp_path / "none")
        assert result.code == 2 and len(result.err.splitlines()) == 1, result
        assert not (tmp_path / "none").exists()
        return result.err

    assert "the model has layers 1 to 2" in refused(digits_run, "--layers", 3, "--num-images", 40, "--num-tokens", 240)
    assert "at least 192" in refused(digits_run, "--num-images", 8, "--num-tokens", 8)
    assert "--num-images 2: must be at least 4" in refused(digits_run, "--num-images", 2)
    assert "only 360 images there" in refused(digits_run, "--num-images", 361)
    assert "no such folder" in refused(tmp_path / "missing")
    assert "give --data IMAGES" in refused(plain_crate)
    assert "unknown --tokens 'both'" in refused(digits_run, "--tokens", "both")


def audited(opencrate, model, *words, count=6):
    """The rows of an audit of a tiny model, which is done without complaint."""
    out = Path(tempfile.mkdtemp(dir=model.parent))
    quick = ("--num-images", count, "--num-tokens", 90, "--layers", 1, "--output", out)
    result = opencrate("audit", model, *words, *quick)
    assert result.code == 0, result.err
    (report,) = json.loads((out / "audit.json").read_text())
    assert {row["layer"] for row in report["rows"]} == {1}
    return report, result.out


def test_audit_needs_no_labels(opencrate, dino, gpt2, plain_crate, images, loose_images, book):
    """Any model that analyze takes: of images in classes it does not know or in none, and of text."""
    for model, data, count in ((dino, "digits", 20), (plain_crate, images, 6), (plain_crate, loose_images, 6)):
        _, out = audited(opencrate, model, "--data", data, count=count)
        assert f"{count} images" in out
    report, out = audited(opencrate, gpt2, "--text", book, "--block-size", 12)
    assert "6 texts" in out and report["data"] == str(book)
    _, out = audited(opencrate, gpt2, "--text", book, "--block-size", 12, "--tokenizer", gpt2)
    assert "6 texts" in out


def test_audit_of_an_autoencoder(opencrate, loose_images, tmp_path):
    folder = tmp_path / "mae"
    tiny_autoencoder(num_channels=3, hidden_size=4).save_pretrained(folder)
    size = {"height": 4, "width": 6}
    processor = CrateImageProcessor(size=size, do_center_crop=False)
    processor.save_pretrained(folder)
    report, _ = audited(opencrate, folder, "--data", loose_images)
    assert report["rows"][0]["subspaces"] == "learned U"
