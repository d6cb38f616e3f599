"""Bad files and folders, made one by one, and the commands that open them.

`World` holds good inputs of every kind. A `Case` is one command line with one of them replaced by something bad; it must
end with exit code 2 and one printable line, write nothing and run nothing. `python -m tests.cli.hostile` runs the whole
product, each case in a process of its own with a time limit, and counts (`few`: the short form).
"""

import gzip
import json
import os
import shutil
import socket
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from opencrate import (
    CrateConfig,
    CrateForImageClassification,
    CrateImageProcessor,
    CrateMAEConfig,
    CrateMAEForPreTraining,
    to_official,
)

from ..analysis.language_models import STORY, causal, saved
from ..recipes.folders import FOLDER_OVERRIDES, write_classes, write_image

INTERNAL = ("Traceback", "KeyError", "TypeError", "AttributeError", "IndexError", "NoneType", "Errno", "codec can't")
INTERNAL += ("object has no attribute", "not subscriptable", "unexpected keyword", "--debug shows", "<class '")
PAYLOAD = "executed"
SMALL = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
OFFICIAL = ("--family", "crate", "--num-attention-heads", "4", "--image-size", "16", "--patch-size", "4")


def build(root: Path) -> None:
    """Good inputs: `m` (classifier), `a` (autoencoder), `l` (language model), `data`, `img.png`, `story.txt`, ..."""
    model = CrateForImageClassification(CrateConfig(num_labels=3, **SMALL))
    model.config.id2label = dict(enumerate(("bottom", "middle", "top")))
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    autoencoder = CrateMAEForPreTraining(CrateMAEConfig(**SMALL))
    for name, one in (("m", model), ("a", autoencoder)):
        one.save_pretrained(root / name)
        CrateImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(root / name)
    torch.save(to_official(model), root / "good.pth")
    saved(causal("crate"), root / "l")
    write_classes(root / "data", 4)
    write_image(root / "img.png", 0, 0)
    (root / "story.txt").write_text(STORY)
    for part in ("images", "masks"):
        (root / "marked" / part).mkdir(parents=True)
        write_image(root / "marked" / part / "one.png", 0, 0)


TRAIN = (*FOLDER_OVERRIDES, "training.max_steps=1", "--no-report", "--output", "out")
DATA = ("--data", "data")
EXPORT = ("--to", "torch", "--num-images", "4", "--repeats", "1")
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "classifier": (
        ("predict", "X", "img.png"),
        ("segment", "X", "img.png", "--size", "16", "--output", "out"),
        ("evaluate-segmentation", "X", "--data", "folder", "marked", "--output", "out"),
        ("evaluate", "X", *DATA),
        ("convert", "X", "out.pth", "--to-official"),
        ("doctor", "X", *DATA, "--num-images", "4"),
        ("analyze", "X", *DATA, "--output", "out", "--num-images", "4"),
        ("audit", "X", *DATA, "--output", "out", "--num-images", "4"),
        ("probe", "X", *DATA),
        ("export", "X", *EXPORT, "--check", "data", "--output", "out"),
        ("finetune", "X", "imagefolder", "data.path=data", *TRAIN),
        ("train", "imagefolder", "data.path=data", *TRAIN, "model.init_from=X"),
    ),
    "autoencoder": (
        ("reconstruct", "X", "img.png", "--output", "out"),
        ("experiment", "reconstruct", "--model", "X", *DATA, "--output", "out"),
        ("export", "X", *EXPORT, "--check", "data", "--output", "out"),
    ),
    "language": (
        ("generate", "X", "The", "--max-new-tokens", "2"),
        ("evaluate", "X", "--text", "story.txt"),
        ("features", "X", "--text", "story.txt", "--output", "out", "--num-features", "1"),
        ("export", "X", *EXPORT, "--check", "story.txt", "--output", "out"),
    ),
    "image": (
        ("predict", "m", "X"),
        ("reconstruct", "a", "X", "--output", "out"),
        ("segment", "m", "X", "--size", "16", "--output", "out"),
    ),
    "data": (
        ("evaluate", "m", "--data", "X"),
        ("probe", "m", "--data", "X"),
        ("analyze", "m", "--data", "X", "--output", "out"),
        ("audit", "m", "--data", "X", "--output", "out"),
        ("export", "m", *EXPORT, "--check", "X", "--output", "out"),
        ("train", "imagefolder", "data.path=X", *TRAIN),
    ),
    "marked": tuple(
        ("evaluate-segmentation", "m", "--data", layout, "X", "--output", "out")
        for layout in ("folder", "coco", "voc", "davis")
    ),
    "instances": (("evaluate-segmentation", "m", "--data", "coco", "X", "--output", "out"),),
    "text": (
        ("evaluate", "l", "--text", "X"),
        ("features", "l", "--text", "X", "--output", "out"),
        ("export", "l", *EXPORT, "--check", "X", "--output", "out"),
        ("train", "text-demo", "--smoke", "text.path=X", "--output", "out"),
    ),
    "tokenizer": (
        ("generate", "l", "The", "--tokenizer", "X"),
        ("evaluate", "l", "--text", "story.txt", "--tokenizer", "X"),
    ),
    "checkpoint": (("convert", "X", "out", *OFFICIAL),),
    "lambada": (("evaluate", "l", "--lambada", "X"),),
    "recipe": (("train", "X", "--output", "out"), ("finetune", "m", "X", "--output", "out")),
    "sweep": (("ablate", "X", "--output", "out"),),
    "size": (
        ("convert", "good.pth", "out", *OFFICIAL, "image_size=X"),
        ("convert", "good.pth", "out", *OFFICIAL, "patch_size=X"),
    ),
    "output": (
        ("train", "imagefolder", "data.path=data", *TRAIN[:-2], "--output", "X"),
        ("finetune", "m", "imagefolder", "data.path=data", *TRAIN[:-2], "--output", "X"),
        ("convert", "good.pth", "X", *OFFICIAL),
        ("export", "m", *EXPORT, "--check", "data", "--output", "X"),
        ("analyze", "m", *DATA, "--output", "X"),
        ("audit", "m", *DATA, "--output", "X"),
        ("features", "l", "--text", "story.txt", "--output", "X"),
        ("reconstruct", "a", "img.png", "--output", "X"),
        ("segment", "m", "img.png", "--size", "16", "--output", "X"),
        ("experiment", "compress", "--quick", "--output", "X"),
        ("ablate", "digits-structure", "--smoke", "--output", "X"),
        ("demo", "--output", "X"),
    ),
}
"""What is opened -> the commands that open it; `X` stands in its place."""

Maker = Callable[[Path], str]
"""Makes something bad in a folder; gives the word for the command line."""


# --- paths of every kind


def _named(name: str) -> Maker:
    return lambda root: name


def _link(name: str, target: str) -> Maker:
    def make(root: Path) -> str:
        os.symlink(target, root / name)
        return name

    return make


def _fifo(name: str) -> Maker:
    def make(root: Path) -> str:
        os.mkfifo(root / name)
        return name

    return make


def _socket(root: Path) -> str:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(root)
        one.bind("sock")
        os.chdir(here)
    return "sock"


def _folder(name: str) -> Maker:
    def make(root: Path) -> str:
        (root / name).mkdir()
        return name

    return make


def _file(name: str, content: bytes) -> Maker:
    def make(root: Path) -> str:
        (root / name).write_bytes(content)
        return name

    return make


def _sparse(name: str) -> Maker:
    def make(root: Path) -> str:
        with (root / name).open("wb") as file:
            file.truncate(1 << 42)
        return name

    return make


PATHS: dict[str, Maker] = {
    "missing": _named("nowhere"),
    "long": _named("x" * 5000),
    "control": _named("a\x1b[31m\nb\tc\r"),
    "no UTF-8": _named(os.fsdecode(b"caf\xe9")),
    "NUL": _named("a\0b"),
    "dangling": _link("dangling", "nowhere"),
    "circular": _link("circular", "circular"),
    "pipe": _fifo("pipe"),
    "socket": _socket,
    "zeros": _named("/dev/zero"),
    "null": _named("/dev/null"),
    "below a file": _named("story.txt/x"),
    "a file that cannot be read to its end": _link("memory", "/proc/self/mem"),
}
EMPTY = {"empty folder": _folder("empty"), "empty file": _file("empty.bin", b"")}
TEXTS: dict[str, Maker] = {
    "null line": _file("a.jsonl", b'{"text": "a"}\nnull\n'),
    "null first": _file("b.jsonl", b"null\n"),
    "number line": _file("c.jsonl", b'{"text": "a"}\n3\n'),
    "list line": _file("d.jsonl", b'{"text": "a"}\n[1]\n'),
    "deep": _file("e.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
    "cut line": _file("f.jsonl", b'{"text": "a"\n'),
    "not UTF-8 line": _file("g.jsonl", b'{"text": "\xff"}\n'),
    "list of null": _file("h.json", b"[null, {}]"),
    "gz bomb": _file("i.jsonl.gz", gzip.compress(b" " * (80 << 20))),
    "cut gz": _file("j.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000)[:30]),
    "no gz": _file("k.jsonl.gz", b'{"text": "a"}\n'),
    "no parquet": _file("l.parquet", b"PAR1 none"),
    "latin": _file("m.txt", b"caf\xe9"),
    "blank": _file("n.txt", b" \n\n "),
    "sparse": _sparse("o.txt"),
    "no strings": _file("p.jsonl", b'{"n": 1}\n'),
}
IMAGES: dict[str, Maker] = {
    "no image": _file("a.png", b"hello"),
    "cut image": lambda root: _cut(root, "cut.png"),
    "large sides": lambda root: _png(root, "bomb.png", 60_000, 60_000),
    "no sides": lambda root: _png(root, "none.png", 0, 0),
    "text bomb": lambda root: _png_with_text(root, "text.png"),
    "sparse image": _sparse("sparse.png"),
    "sparse BMP": lambda root: _sparse_bmp(root),
}
_IMAGE = {"id": 1, "file_name": "img.png", "height": 16, "width": 16}
_MARK = {
    "id": 1,
    "image_id": 1,
    "category_id": 1,
    "iscrowd": 0,
    "bbox": [0, 0, 8, 8],
    "segmentation": [[0, 0, 8, 0, 8, 8]],
}
_KINDS = [{"id": 1, "name": "one"}]


def _instances(name: str, **changes: object) -> Maker:
    """COCO's annotations of `img.png`, with something else in place of a part."""

    def make(root: Path) -> str:
        whole: dict[str, object] = {"images": [_IMAGE], "annotations": [_MARK], "categories": _KINDS, **changes}
        (root / name).write_text(json.dumps(whole))
        return name

    return make


INSTANCES: dict[str, Maker] = {
    "cut": _file("instances_a.json", b'{"images": ['),
    "binary": _file("instances_b.json", bytes(range(256))),
    "deep": _file("instances_c.json", b'{"images":' * 10_000 + b"1" + b"}" * 10_000),
    "a list": _file("instances_d.json", b"[]"),
    "null": _file("instances_e.json", b"null"),
    "sparse": _sparse("instances_f.json"),
    "images of numbers": _instances("instances_g.json", images=[1]),
    "no annotations": _instances("instances_h.json", annotations=None),
    "file outside": _instances("instances_i.json", images=[{**_IMAGE, "file_name": "../outside.png"}]),
    "file of another kind": _instances("instances_j.json", images=[{**_IMAGE, "file_name": 3}]),
    "sides of words": _instances("instances_k.json", images=[{**_IMAGE, "height": "x"}]),
    "polygon of words": _instances("instances_l.json", annotations=[{**_MARK, "segmentation": [["a", "b"]]}]),
    "polygon of a number": _instances("instances_m.json", annotations=[{**_MARK, "segmentation": [[1.0]]}]),
    "no polygon": _instances("instances_n.json", annotations=[{**_MARK, "segmentation": None}]),
    "runs below 0": _instances(
        "instances_o.json", annotations=[{**_MARK, "segmentation": {"size": [16, 16], "counts": [-5, 261]}}]
    ),
    "runs of another size": _instances(
        "instances_p.json", annotations=[{**_MARK, "segmentation": {"size": [1 << 30, 1 << 30], "counts": [1 << 60]}}]
    ),
    "runs that are no text": _instances(
        "instances_q.json", annotations=[{**_MARK, "segmentation": {"size": [16, 16], "counts": "\u0000\u00e9"}}]
    ),
    "mark of no image": _instances("instances_r.json", annotations=[{**_MARK, "image_id": 9}]),
    "image id that is a word": _instances("instances_t.json", images=[{**_IMAGE, "id": "one"}]),
    "category of a word": _instances("instances_u.json", annotations=[{**_MARK, "category_id": "one"}]),
    "box of words": _instances("instances_v.json", annotations=[{**_MARK, "bbox": ["a"] * 4}]),
    "image id that is a list": _instances("instances_s.json", images=[{**_IMAGE, "id": [1]}]),
}
RECIPES: dict[str, Maker] = {
    "binary": _file("a.yaml", bytes(range(256))),
    "list": _file("b.yaml", b"- 1\n"),
    "bomb": _file("c.yaml", b"a: &a [1]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (n, n) for n in range(9))),
    "deep": _file("d.yaml", b"[" * 10_000),
    "sparse": _sparse("e.yaml"),
}


def _cut(root: Path, name: str) -> str:
    (root / name).write_bytes((root / "img.png").read_bytes()[:150])
    return name


def _chunk(kind: bytes, content: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(root: Path, name: str, width: int, height: int, *more: bytes) -> str:
    import zlib

    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(more)
        + _chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + _chunk(b"IEND", b"")
    )
    (root / name).write_bytes(data)
    return name


def _png_with_text(root: Path, name: str) -> str:
    import zlib

    return _png(root, name, 16, 16, _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (80 << 20))))


def _sparse_bmp(root: Path) -> str:
    header = (
        b"BM"
        + struct.pack("<IHHI", 1 << 31, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    with (root / "sparse.bmp").open("wb") as file:
        file.write(header)
        file.truncate(1 << 40)
    return "sparse.bmp"


# --- checkpoints


class _Runs:
    def __reduce__(self):
        return (open, (PAYLOAD, "w"))


def _saved_as(change: Callable[[dict], object], name: str = "bad.pth") -> Maker:
    def make(root: Path) -> str:
        torch.save(change(torch.load(root / "good.pth")), root / name)
        return name

    return make


def _cast(dtype: torch.dtype) -> Maker:
    return _saved_as(lambda weights: {name: value.to(dtype) for name, value in weights.items()})


def _around_itself(weights: dict) -> dict:
    outer: dict = {}
    outer["model"] = outer
    return outer


def _wrapped(weights: dict) -> dict:
    for _ in range(100):
        weights = {"state_dict": weights}
    return weights


def _zip_bomb(root: Path) -> str:
    with (
        zipfile.ZipFile(root / "good.pth") as old,
        zipfile.ZipFile(root / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for one in old.infolist():
            new.writestr(one.filename, old.read(one) if "data/" not in one.filename else b"\0" * (64 << 20))
            if "data/0" in one.filename:
                break
    return "bomb.pth"


def _expanded(weights: dict) -> dict:
    return {name: torch.zeros(1).expand(10**9) if name == "cls_token" else value for name, value in weights.items()}


CHECKPOINTS: dict[str, Maker] = {
    "runs code": _saved_as(lambda weights: {**weights, "x": _Runs()}),
    "whole numbers": _cast(torch.int64),
    "float8": _cast(torch.float8_e4m3fn),
    "complex": _cast(torch.complex64),
    "around itself": _saved_as(_around_itself),
    "many wrappers": _saved_as(_wrapped),
    "zip bomb": _zip_bomb,
    "one number expanded": _saved_as(_expanded),
    "a list": _saved_as(lambda weights: list(weights.values())),
    "a tensor": _saved_as(lambda weights: next(iter(weights.values()))),
    "nothing": _saved_as(lambda weights: {}),
    "names that are numbers": _saved_as(lambda weights: dict(enumerate(weights.values()))),
    "one too many": _saved_as(lambda weights: {**weights, "x": torch.zeros(1)}),
    "one missing": _saved_as(lambda weights: dict(list(weights.items())[1:])),
    "text": _file("text.pth", b"hello"),
    "text as safetensors": _file("text.safetensors", b"hello"),
    "huge header": _file("huge.safetensors", struct.pack("<Q", 1 << 62) + b"{}"),
    "sparse": _sparse("sparse.pth"),
}


# --- saved folders


def _copy(name: str, change: Callable[[Path], object]) -> Maker:
    """A copy of a good folder, changed."""

    def make(root: Path) -> str:
        folder = root / f"bad-{name}"
        shutil.copytree(root / name, folder)
        change(folder)
        return folder.name

    return make


def _json(file: str, **fields: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / file
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**old, **fields}))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return apply


def _first(dtype: torch.dtype) -> Callable[[Path], object]:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(name for name in weights if name.endswith("subspaces.weight"))
        return {**weights, name: weights[name].to(dtype)}

    return _weights(change)


def with_code(*places: tuple[str, dict]) -> Callable[[Path], object]:
    """A folder that brings code, which leaves a file behind if it is ever run."""

    def change(folder: Path) -> None:
        source = f"open({str(folder.parent / PAYLOAD)!r}, 'w')\nclass Evil: pass\n"
        for name in ("evil.py", "tokenization_evil.py", "custom_generate/generate.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(source)
        for file, fields in places:
            _json(file, **fields)(folder)

    return change


_AUTO = (
    "Config",
    "Model",
    "ModelForImageClassification",
    "ModelForPreTraining",
    "ModelForCausalLM",
    "ModelForMaskedLM",
)
ALL_CODE = {f"Auto{name}": "evil.Evil" for name in (*_AUTO, "ImageProcessor", "FeatureExtractor")}
ALL_CODE |= {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
PROCESSOR_WITH_CODE = {"auto_map": ALL_CODE, "image_processor_type": "EvilProcessor"}
UNKNOWN = {"model_type": "evil", "auto_map": ALL_CODE}


def _index(target: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def _overlapping(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size :])


def _replace(file: str, content: bytes | None) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        if content is not None:
            (folder / file).write_bytes(content)

    return change


def _special(file: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


FOLDERS: dict[str, Callable[[Path], object]] = {
    "unknown type with code": with_code(("config.json", UNKNOWN)),
    "no type with code": with_code(("config.json", {"model_type": None, "auto_map": ALL_CODE})),
    "code of the Hub": with_code(("config.json", {**UNKNOWN, "auto_map": {"AutoConfig": "some/one--evil.Evil"}})),
    "kernels of the Hub": _json("config.json", attn_implementation="some/one"),
    "an adapter": _json("adapter_config.json", base_model_name_or_path="../m", peft_type="LORA"),
    "unknown type": _json("config.json", model_type="nope"),
    "type that is a list": _json("config.json", model_type=["crate"]),
    "type of 5,000 characters": _json("config.json", model_type="x" * 5000),
    "type with control characters": _json("config.json", model_type="x\x1b[31m\n"),
    "architectures of another kind": _json("config.json", architectures=3),
    "architectures of numbers": _json("config.json", architectures=[3]),
    "architectures of another type": _json("config.json", architectures=["BertForMaskedLM"]),
    "attention that is not there": _json("config.json", attn_implementation="flash_attention_2"),
    "attention that is a number": _json("config.json", _attn_implementation=3),
    "a type with fields of other kinds": _json("config.json", model_type="t5"),
    "whole numbers": _first(torch.int64),
    "bytes": _first(torch.uint8),
    "float8": _first(torch.float8_e4m3fn),
    "NaN": _weights(lambda weights: {name: value * float("nan") for name, value in weights.items()}),
    "one too many": _weights(lambda weights: {**weights, "x": torch.zeros(1)}),
    "one missing": _weights(lambda weights: dict(list(weights.items())[1:])),
    "another shape": _weights(lambda weights: {name: value[..., :-1].clone() for name, value in weights.items()}),
    "no weights": _weights(lambda weights: {}),
    "weights missing": _replace("model.safetensors", None),
    "weights empty": _replace("model.safetensors", b""),
    "weights that are text": _replace("model.safetensors", b"hello"),
    "overlapping tensors": _overlapping,
    "shard outside": _index("../outside.safetensors"),
    "shard missing": _index("model-00001-of-00002.safetensors"),
    "shard of 5,000 characters": _index("x" * 5000),
    "shard of another type": _index(3),  # type: ignore[arg-type]
    "weights are a pipe": _special("model.safetensors", os.mkfifo),
    "weights are a folder": _special("model.safetensors", os.mkdir),
    "weights are a circle": _special("model.safetensors", lambda path: os.symlink(path.name, path)),
    "config is a pipe": _special("config.json", os.mkfifo),
    "config is a folder": _special("config.json", os.mkdir),
    "config is a device": _special("config.json", lambda path: os.symlink("/dev/zero", path)),
    "config is sparse": _special("config.json", lambda path: _sparse(path.name)(path.parent)),
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: max(1, len(path.read_bytes()) // 2)]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "deep": lambda path: path.write_bytes(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "3": lambda path: path.write_bytes(b"3"),
    "null": lambda path: path.write_bytes(b"null"),
    "[]": lambda path: path.write_bytes(b"[]"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}
"""What can have happened to a file that lies beside others."""
OUTPUTS: dict[str, Maker] = {
    "full device": _named("/dev/full"),
    "below a device": _named("/dev/full/x"),
    "below a file": _named("story.txt/x"),
    "a file": _named("story.txt"),
    "dangling": _link("dangling", "nowhere"),
    "circular": _link("circular", "circular"),
    "below a circle": lambda root: f"{_link('circular', 'circular')(root)}/x",
    "pipe": _fifo("pipe"),
    "no space": _named("/proc/nowhere"),
    "long": _named("x" * 5000),
    "NUL": _named("a\0b"),
}


@dataclass(frozen=True)
class Case:
    """One command line with one bad input."""

    kind: str
    bad: str
    make: Maker
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """For reports."""
        return f"{' '.join(self.words[:2])} | {self.kind} | {self.bad}"

    def command(self, root: Path) -> list[str]:
        """The words, with the bad input made."""
        word = self.make(root)
        return [
            part.replace("X", word) if part in ("X", "data.path=X", "text.path=X") or part.endswith("=X") else part
            for part in self.words
        ]


def _bad_inputs() -> Iterator[tuple[str, str, Maker]]:
    """Everything bad, by what it stands for."""
    folders = {"classifier": "m", "autoencoder": "a", "language": "l"}
    for kind, name in folders.items():
        for bad, make in {**PATHS, **EMPTY}.items():
            yield kind, bad, make
        for bad, change in FOLDERS.items():
            yield kind, bad, _copy(name, change)
        for bad, damage in DAMAGES.items():
            yield kind, f"config.json: {bad}", _copy(name, lambda folder, damage=damage: damage(folder / "config.json"))
    texts = {**PATHS, **EMPTY, **TEXTS}
    for kind, some in {
        "image": {**PATHS, **EMPTY, **IMAGES},
        "data": {**PATHS, **EMPTY},
        "marked": {**PATHS, **EMPTY},
        "instances": INSTANCES,
        "text": texts,
        "tokenizer": {**PATHS, **EMPTY, "text": _named("story.txt"), "3": _file("3.json", b"3")},
        "checkpoint": {**PATHS, "empty file": EMPTY["empty file"], **CHECKPOINTS},
        "lambada": {name: texts[name] for name in (*PATHS, *EMPTY, *TEXTS) if name not in ("latin",)},
        "recipe": {**{name: make for name, make in PATHS.items()}, **EMPTY, **RECIPES},
        "sweep": {**PATHS, **EMPTY, **RECIPES},
        "size": {
            value: _named(value) for value in ("0", "-1", "1e26", ".nan", "true", "[]", "[4]", "[4, x]", "{a: 1}", "x")
        },
        "output": OUTPUTS,
    }.items():
        for bad, make in some.items():
            yield kind, bad, make


_FINE = (("doctor", "NaN"), ("convert", "architectures of another type"))
"""Where a bad input is none: the doctor is there to say so, and weights are converted by the model_type alone."""


def all_cases() -> list[Case]:
    """The whole product."""
    cases = [Case(kind, bad, make, words) for kind, bad, make in _bad_inputs() for words in COMMANDS[kind]]
    return [case for case in cases if (case.words[0], case.bad) not in _FINE]


def few_cases() -> list[Case]:
    """Every bad input at one of the kinds of inputs that it can stand for, the commands by turns."""
    turns: Counter[str] = Counter()
    cases = []
    kinds = list(COMMANDS)
    for number, (kind, bad, make) in enumerate(_bad_inputs()):
        commands = COMMANDS[kind]
        several = bad in PATHS or kind in kinds[:3]
        if several and kind != "output" and (number + kinds.index(kind)) % 3:
            continue
        cases.append(Case(kind, bad, make, commands[turns[kind] % len(commands)]))
        turns[kind] += 1
    return cases


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with size and time of change."""
    found = {}
    for path in root.rglob("*"):
        state = path.lstat()
        found[str(path.relative_to(root))] = (
            state.st_size if not path.is_dir() else 0,
            state.st_mtime_ns if path.is_file() else 0,
        )
    return found


def shortcomings(code: int | None, out: str, err: str, before: dict, root: Path) -> list[str]:
    """What is wrong with how a bad command line ended."""
    found = []
    lines = err.splitlines()
    if code != 2:
        found.append(f"exit code {code}")
    if out:
        found.append("something on standard output")
    if (
        not lines
        or not lines[-1].startswith("opencrate: error: ")
        or not all(x.startswith("opencrate: ") for x in lines)
    ):
        found.append("no single line")
    if lines and (not lines[-1].isprintable() or len(lines[-1]) > 1200):
        found.append("a long or unprintable line")
    found += [f"internal word {word}" for word in INTERNAL if word in err]
    if (root / PAYLOAD).exists():
        found.append("code was executed")
    if snapshot(root) != before:
        found.append("something was written")
    return found


def run_apart(root: Path, words: list[str], limit: float) -> tuple[int | None, str, str]:
    """A command line in a forked process with a 'y' for every question; its end, `None` where it had to be killed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as typed:
        typed.write(b"y\n" * 50)
        typed.seek(0)
        process = os.fork()
        if process == 0:
            code = 99
            try:
                for number, file in enumerate((typed, out, err)):
                    os.dup2(file.fileno(), number)
                sys.stdin, sys.stdout, sys.stderr = (
                    os.fdopen(n, m, errors="backslashreplace", closefd=False) for n, m in ((0, "r"), (1, "w"), (2, "w"))
                )
                os.chdir(root)
                from opencrate.cli.main import main

                code = main(words)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        end, status = time.monotonic() + limit, None
        while status is None and time.monotonic() < end:
            done, found = os.waitpid(process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if done else None
            time.sleep(0.005)
        if status is None:
            os.kill(process, 9)
            os.waitpid(process, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 20).decode("utf-8", "backslashreplace"))
        return status, *texts


def main(limit: float = 60.0) -> None:
    """Run the product and count."""
    cases = few_cases() if sys.argv[1:] == ["few"] else all_cases()
    import opencrate.cli.common
    import opencrate.evaluation.generation
    import opencrate.reports.runs
    import opencrate.store.saved
    import opencrate.training.train

    opencrate.cli.common.prepare_libraries()
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        good.mkdir()
        build(good)
        short = Counter()
        for case in cases:
            root = Path(folder) / "world"
            shutil.copytree(good, root)
            words = case.command(root)
            before = snapshot(root)
            code, out, err = run_apart(root, words, limit)
            if found := shortcomings(code, out, err, before, root):
                short[case.name] += 1
                print(f"{case.name}: {'; '.join(found)} | {err.strip()[-400:]!r}", flush=True)
            shutil.rmtree(root)
        print(f"{opencrate.__file__}: {len(cases)} tried, {len(short)} fell short")


if __name__ == "__main__":
    main()
