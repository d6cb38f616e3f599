"""What we use of other packages beyond their documented surface is there; a new version that drops it is named.

The members of transformers' Trainer have a test each in tests/training/test_trainer_members.py.
"""

import ast
import importlib
import importlib.metadata
from pathlib import Path

import pytest

import opencrate

ROOT = Path(opencrate.__file__).parent
NAMES = {  # object -> private or undocumented members of it that src names
    "torch:_foreach_lerp_": "_foreach_lerp_",
    "torch._C:_len_torch_dispatch_stack": "",
    "torch._C:_are_functorch_transforms_active": "",
    "torch.autograd.forward_ad:_current_level": "",
    "torch.cpu:_is_amx_tile_supported": "",
    "torch.cpu:_is_avx512_bf16_supported": "",
    "torch.nn.modules.module:_has_any_global_hook": "",
    "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter": "_shutdown_workers",
    "torch.utils.data:DataLoader": "_iterator",
    "transformers:AutoModelForImageClassification": "_model_mapping",
    "transformers:PreTrainedModel": "_init_weights _can_record_outputs _tied_weights_keys _no_split_modules "
    "_skip_keys_device_placement",
    "transformers:PreTrainedConfig": "_attn_implementation",
    "transformers.cache_utils:DynamicLayer": "lazy_initialization get_seq_length reset",
    "transformers.cache_utils:DynamicCache": "get_seq_length",
    "argparse:ArgumentParser": "_check_value",
    "argparse:_SubParsersAction": "",
    "PIL.ImageEnhance:_Enhance": "enhance",
}


@pytest.mark.parametrize(("owner", "members"), NAMES.items(), ids=NAMES)
def test_it_is_there(owner, members):
    module, _, name = owner.partition(":")
    package = module.partition(".")[0]
    version = (
        f"{package} {importlib.metadata.version(package.replace('PIL', 'pillow'))}" if package != "argparse" else ""
    )
    found = getattr(importlib.import_module(module), name, None)
    assert found is not None, f"{version}: {module} has no {name} any more"
    source = Path(importlib.import_module(found.__module__).__file__).read_text() if members.startswith("_") else ""
    for member in members.split():
        known = hasattr(found, member) or found.__name__ == member or f"self.{member}" in source
        assert known, f"{version}: {name} has no {member} any more"


def test_what_hf_hands_on_is_there():
    from opencrate import _hf

    assert all(getattr(_hf, name, None) is not None for name in _hf.__all__)


def test_exports_are_those_that_type_checkers_read():
    """Each package offers the names that it imports under `TYPE_CHECKING`, from the same modules."""
    found = 0
    for path in [ROOT / "__init__.py", *ROOT.glob("*/__init__.py")]:
        blocks = [one for one in ast.parse(path.read_text()).body if isinstance(one, ast.If)]
        for block in [one for one in blocks if ast.unparse(one.test) == "TYPE_CHECKING"]:
            package = importlib.import_module(".".join(path.relative_to(ROOT.parent).parts[:-1]))
            typed = {alias.name for node in block.body for alias in node.names}
            assert typed == set(package.__all__) - {"register_auto_classes"} and typed <= {*dir(package)}, path
            modules = {one.stem for one in path.parent.iterdir()}
            assert not typed & modules, f"{path}: a module below it has the name of an export"
            for node in block.body:
                module = importlib.import_module(f"{package.__name__}.{node.module}")
                assert all(getattr(package, alias.name) is getattr(module, alias.name) for alias in node.names)
            found += 1
    assert found > 6
