"""Does this installation work? Python and packages against our bounds, torch, devices, models, caches, attention.

Nothing heavy is imported before it is needed: a package that is missing or broken becomes a finding, not an error.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ..._files import one_line
from ..._outputs import check_output
from ..._weights import INSTALL, how_to_install, installed_models
from .signatures import FAIL, NOT_CHECKED, OK, WARN, Verdicts

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""The implementations that the models declare, with transformers' names; the first two must work everywhere."""
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class PartFinding:
    """What was found about one part of the installation.

    Attributes:
        check: the part.
        verdict: "ok", "warn" (untested, or a part that few need), "fail" (something will not work) or "not checked".
        evidence: in words.
        advice: what to do; empty where all is well.
    """

    check: str
    verdict: str
    evidence: str
    advice: str = ""


@dataclass(frozen=True)
class Installation(Verdicts):
    """What was found about all parts, and what a run would write down about the machine."""

    findings: tuple[PartFinding, ...]
    environment: dict[str, Any] = field(default_factory=dict)
    model: str = "this installation"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = [{**asdict(one), "advice": one.advice or None} for one in self.findings]
        return {"healthy": self.healthy(), "environment": self.environment, "findings": found}


def examine_installation(
    attention: Sequence[str] = ATTENTION, progress: Callable[[str], object] = lambda text: None
) -> Installation:
    """Look at every part of this installation; no network, and no files but what caches keep.

    Args:
        attention: implementations to try by a tiny forward pass. The first `flex_attention` compiles for seconds.
        progress: is told, in words, about what takes long.
    """
    installed = _version("opencrate") is not None
    parts = [_python(), *_requirements()] if installed else [_NOT_INSTALLED]
    environment, torch_parts = _torch()
    parts += [*torch_parts, *(_extras() if installed else ()), _weights(), *_caches()]
    for name in attention:
        if name == "flex_attention":
            progress("trying flex_attention, which compiles at its first use")
        parts.append(_attention(name))
    return Installation(tuple(parts), environment)


# --- versions

_NOT_INSTALLED = PartFinding(
    "packages", WARN, "opencrate runs from its source, so the versions it allows are not known", "pip install ."
)
_DEVELOPERS = ("test", "dev", "docs")
"""Extras for work on the package, which users have no need of."""


def _python() -> PartFinding:
    allowed, version = metadata.metadata("opencrate")["Requires-Python"] or ">=3.11", platform.python_version()
    evidence = f"{version}, {platform.system()} {platform.machine()}; allowed {allowed}"
    if SpecifierSet(allowed).contains(version, prereleases=True):
        return PartFinding("python", OK, evidence)
    return PartFinding("python", FAIL, evidence, f"install Python {allowed}")


def compared(requirement: Requirement, version: str | None) -> PartFinding:
    """A package's version against what is allowed: missing and too old fail, too new is only untested."""
    allowed = ",".join(sorted(map(str, requirement.specifier), reverse=True)) or "any version"
    if version is None:
        return PartFinding(requirement.name, FAIL, f"not installed; allowed {allowed}", f"pip install '{requirement}'")
    broken = [one for one in requirement.specifier if not one.contains(version, prereleases=True)]
    if not broken:
        return PartFinding(requirement.name, OK, f"{version}, in range {allowed}")
    old = any(one.operator in (">=", ">", "~=") for one in broken)
    words = "too old" if old else "too new" if all(one.operator in ("<", "<=") for one in broken) else "not in range"
    evidence = f"{version}, {words}; allowed {allowed}"
    return PartFinding(requirement.name, FAIL if old else WARN, evidence, f"pip install '{requirement}'")


def _stated() -> Iterator[Requirement]:
    """The requirements of our metadata that concern this system, extras included."""
    for text in metadata.requires("opencrate") or []:
        yield Requirement(text)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[PartFinding]:
    plain = [one for one in _stated() if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [compared(_bare(one), _version(one.name)) for one in plain]


def _bare(requirement: Requirement) -> Requirement:
    """Name and versions alone, for messages."""
    return Requirement(f"{requirement.name}{requirement.specifier}")


def _extras() -> list[PartFinding]:
    """For each extra whether it is installed; nobody needs all of them, so only wrong versions are warned about."""
    found = []
    for extra in metadata.metadata("opencrate").get_all("Provides-Extra") or []:
        if extra in _DEVELOPERS:
            continue
        own = [
            one
            for one in _stated()
            if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})
        ]
        parts = [compared(_bare(one), _version(one.name)) for one in own]
        missing = [one.check for one in parts if one.evidence.startswith("not installed")]
        wrong = [f"{one.check} {one.evidence}" for one in parts if one.verdict != OK and one.check not in missing]
        words = [*([f"without {', '.join(missing)}"] if missing else []), *wrong]
        evidence = "; ".join(words) or ", ".join(f"{one.name} {_version(one.name)}" for one in own)
        advice = f"pip install 'opencrate[{extra}]'" if wrong else ""
        found.append(PartFinding(f"extra {extra}", WARN if wrong else OK, evidence, advice))
    return found


# --- torch and devices


def _torch() -> tuple[dict[str, Any], list[PartFinding]]:
    try:
        import torch

        from ...store.environment import environment

        facts = environment()
    except Exception as error:
        advice = "install PyTorch again, as pytorch.org says for this system"
        return {}, [PartFinding("torch runs", FAIL, _words(error), advice)]
    half = f"bfloat16 by {facts['bf16']}" if facts["bf16"] else "no instructions for bfloat16"
    cpu = f"{facts['cpu']}, {facts['cpu_cores']} cores, {facts['cpu_capability']}, {half}"
    threads = f"{facts['torch_threads']} threads"
    return facts, [PartFinding("torch runs", OK, f"{facts['torch_build']}, {threads}, {cpu}"), _devices(torch)]


def _devices(torch: Any) -> PartFinding:
    build = torch.version.cuda or torch.version.hip
    if build is None:
        if not _DRIVER.exists():
            return PartFinding("GPU", OK, "none: torch is built for CPU, and no NVIDIA driver is there")
        evidence, advice = "an NVIDIA driver is there, but torch is built for CPU", "install torch's build for CUDA"
        return PartFinding("GPU", WARN, evidence, f"{advice}, as pytorch.org says for this system")
    if not torch.cuda.is_available():
        evidence = f"none that torch can use, though it is built for {build}"
        advice = f"does `nvidia-smi` list the device, and is its driver new enough for {build}?"
        return PartFinding("GPU", WARN if _DRIVER.exists() else OK, evidence, advice if _DRIVER.exists() else "")
    names = []
    try:
        for index in range(torch.cuda.device_count()):
            told = torch.cuda.get_device_properties(index)
            torch.ones(8, 8, device=f"cuda:{index}").mm(torch.ones(8, 8, device=f"cuda:{index}")).sum().item()
            half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
            names.append(f"{told.name} ({told.total_memory / 2**30:.0f} GiB, {told.major}.{told.minor}, {half})")
    except Exception as error:
        return PartFinding("GPU", FAIL, _words(error), "install the build of torch that supports this device")
    return PartFinding("GPU", OK, ", ".join(names))


# --- models, caches


def _weights() -> PartFinding:
    try:
        models = installed_models()
    except ValueError as error:
        return PartFinding("opencrate-weights", FAIL, str(error), f"install it again: {INSTALL}")
    if not models:
        return PartFinding("opencrate-weights", OK, f"not installed; {how_to_install()}")
    damaged = [f"{one['name']}: {one['damage']}" for one in models if one["damage"]]
    if damaged:
        return PartFinding("opencrate-weights", FAIL, "; ".join(damaged), f"install it again: {INSTALL}")
    version = _version("opencrate-weights") or "not from a package"
    return PartFinding("opencrate-weights", OK, f"{version}, {len(models)} models, every file as its SHA-256 says")


def _caches() -> Iterator[PartFinding]:
    """Whether the folders that are written to on the way can be; they are named only where they cannot."""
    for name, verdict, variable, where in _CACHES:
        try:
            check_output(where() / "new")
        except (ValueError, ImportError) as error:
            words = _words(error).partition(";")[0].replace(str(Path.home()), "~")
            advice = f"set the environment variable {variable} to a folder that can be written to"
            yield PartFinding(name, verdict, words, advice)
        else:
            yield PartFinding(name, OK, f"can be written to{f' ({variable} is set)' if variable in os.environ else ''}")


def _own_cache() -> Path:
    from ...calibration import cache_folder

    return cache_folder()


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


_CACHES = (
    ("cache of tokens", FAIL, "OPENCRATE_CACHE", _own_cache),
    ("cache of the Hub", WARN, "HF_HOME", _hub_cache),  # a shared one that is only read is common
)


# --- attention


def _attention(name: str) -> PartFinding:
    check, needed = f"attention {name}", name in ATTENTION[:2]
    try:
        gap, where = attention_gap(name)
    except ImportError as error:
        advice = "install torch and transformers again, in the ranges above" if needed else ""
        return PartFinding(check, FAIL if needed else NOT_CHECKED, _words(error), advice)
    except Exception as error:  # compilers and kernels raise whatever they meet
        advice = "install torch again, as pytorch.org says" if needed else "use sdpa, which is the default"
        return PartFinding(check, FAIL if needed else WARN, _words(error), advice)
    if gap > 0.05:
        return PartFinding(check, FAIL, f"differs from eager by {gap:.2g} on {where}", "do not use it; report it to us")
    return PartFinding(check, OK, f"works on {where}")


def attention_gap(name: str) -> tuple[float, str]:
    """How far a tiny CRATE with this attention is from eager, as a share of the largest output, and on what.

    Flash attention is for GPUs and half precision, so it is tried in bfloat16; all else in float32.

    Raises:
        ImportError: a package is not installed.
    """
    import torch

    from ...configuration_crate import CrateConfig
    from ...modeling_crate import CrateForImageClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if name.startswith("flash") else torch.float32
    outputs = []
    for each in ("eager", name):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = CrateConfig(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, num_labels=2
            )
            model = CrateForImageClassification._from_config(config, attn_implementation=each).eval()
            pixels = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            outputs.append(model.to(device, dtype)(pixels.to(device, dtype)).logits.float())
    gap = (outputs[1] - outputs[0]).abs().max() / outputs[0].abs().max()
    return float(gap.nan_to_num(nan=float("inf"))), f"{device} in {str(dtype).removeprefix('torch.')}"


def _words(error: Exception) -> str:
    """The first line of an error, with its kind where it says nothing else."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else type(error).__name__)
