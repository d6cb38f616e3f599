"""Cut the committed fixtures out of the full golden sets: ``python -m tests.golden.make_fixtures [FULL] [TARGET]``.

Same names, same values, fewer of the large tensors: a tensor is dropped, or kept whole, or cut to its first sample.
``crate_alpha/main`` and its probe are left out: their weights alone are 300 kB, and ``nonsquare`` covers the same
forward. ``crate_lm`` keeps its complete model without what is regenerated, and of the overcomplete one the first layer.
``official_code`` of the measures uses the weights and images of ``crate_classifier/main``.
"""

import os
import re
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from . import FIXTURES, golden_root

_WEIGHTS = r"state_dict\..*|override\..*|labels|logits|loss_.*|pooled"

# set -> file -> (pattern of the keys kept whole, pattern of those cut to the first sample); all others are dropped.
KEPT: dict[str, dict[str, tuple[str, str]]] = {
    "crate_classifier": {
        "main": (
            rf"{_WEIGHTS}|images|grad\.(cls_token|pos_embedding|mlp_head.*|to_patch_embedding.*)"
            r"|grad\.transformer\.layers\.0\..*",
            r"layer0\.half|layer2\.out",
        ),
        "nonsquare_mean_pool": (r"state_dict\..*", "images|pooled|logits"),
        "rect_patch_gray": (rf"{_WEIGHTS}|images", r"tokens_embedded|layer\d\.(attention|projected|half|out)"),
        "interpolated_positions": (
            r"native\.(images|pos_embedding|attention_cls_row|logits)|larger\.(images|attention_cls_row|logits)",
            "",
        ),
        "layernorm_eps_probe": (rf"{_WEIGHTS}|images", ""),
    },
    "crate_alpha": {
        "nonsquare": (
            rf"{_WEIGHTS}|images|layer0\.code\d",
            r"patch_conv|tokens_embedded|layer\d\.(attention|projected|half|ista_out|out)",
        )
    },
    "crate_lm": {
        "complete": (
            r"state_dict\.transformer\.(?!.*attn\.bias).*|idx|targets|loss|logits_last_only|generate\.greedy_top1\.idx"
            r"|grad\.transformer\.h\.0\.(attn\.c_attn|prenorm).*",
            r"layer2\.out|logits",
        ),
        "overcomplete": (
            r"state_dict\.transformer\.(h\.0|w[tp]e|ln_f)\..*|idx|targets",
            r"tokens_embedded|layer0\.(projected|half|out)",
        ),
    },
    "crate_mae": {
        "main": (
            r"state_dict\..*|images|noise|mask|ids_restore|loss\..*"
            r"|grad\.(cls_token|mask_token|patch_embed.*|(decoder_)?blocks\.0\.layers\.0\..\.norm.*)",
            r"latent|pred|decoder0\.half",
        ),
        "mask_ratio_0.6": ("noise|mask|ids_restore|loss.*", "pred"),
        "other_lambda": (r"loss\..*", "pred"),
        "layernorm_eps_probe": (r"override\..*|loss\..*", "pred"),
        "encoder_visualisation": (r"h24_w40\.(images|layer\d\.attention_cls_row|pos_embedding)", ""),
    },
    "tost": {
        "tssa_vision_module": (".*", ""),
        "language": (r"state_dict\.transformer\.h\.0\.attn\..*", r"layer0\.(norm1|membership|projected|tssa_.*)"),
    },
    "crate_measures": {
        "definitions": (
            r"tokens\.(embedded|layer2|random).*|bases\..*|definition\.grad_.*\.random_wide\..*eps0\.[15]",
            "",
        ),
        "official_code": (r"official\..*", ""),
    },
    "dino_loss": {"dino_loss": (".*", "")},
    "dino_extra": {name: (".*", "") for name in ("loss", "head_default", "head_learned_last", "schedules")},
    "simdino_loss": {"simdino_loss": (".*", "")},
    "maskcut": {"demo1_p16": (r"feats|.*\.(seed|eigenvalues|eigenvector|component|box_.*|mask)", "")},
}


def cut(tensors: dict[str, Tensor], whole: str, first: str) -> dict[str, Tensor]:
    """The kept tensors of one file."""
    kept = {name: value for name, value in tensors.items() if re.fullmatch(whole, name)}
    kept |= {name: value[:1] for name, value in tensors.items() if name not in kept and re.fullmatch(first, name)}
    return {name: value.clone() for name, value in kept.items()}


def make_fixtures(full: Path, target: Path) -> int:
    """Write the fixtures under ``target``; returns their size in bytes."""
    size = 0
    for set_name, files in KEPT.items():
        (target / set_name).mkdir(parents=True, exist_ok=True)
        for file, (whole, first) in files.items():
            path = target / set_name / f"{file}.safetensors"
            temporary = path.with_suffix(".tmp")
            save_file(cut(load_file(full / set_name / path.name), whole, first), temporary)
            os.replace(temporary, path)
            size += path.stat().st_size
    for set_name in (*KEPT, "param_counts"):
        (target / set_name).mkdir(parents=True, exist_ok=True)
        meta = target / set_name / "meta.json"
        temporary = meta.with_suffix(".tmp")
        temporary.write_bytes((full / set_name / "meta.json").read_bytes())
        os.replace(temporary, meta)
        size += meta.stat().st_size
    return size


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else golden_root()
    destination = Path(sys.argv[2]) if len(sys.argv) > 2 else FIXTURES
    if source == destination:
        sys.exit("the full golden sets are not here: give their folder, or set OPENCRATE_GOLDEN")
    print(f"{make_fixtures(source, destination) / 1000:.0f} kB in {destination}")
