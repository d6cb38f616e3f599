"""transformers' `from_pretrained` for models of the package opencrate-weights: the name becomes a folder.

transformers has no place to register where a name leads. So each public `from_pretrained` that takes a name is wrapped,
and nothing below it: the one argument is exchanged before transformers sees it, and what follows is its ordinary way of
reading a folder. To change how it looks for files would be fewer lines here, but its tokenizers and pipelines also ask
the Hub about a name at places of their own, which move from version to version.

Only names `opencrate/...` are looked at. A folder of that path, a `revision`, a `subfolder` or `force_download=True`
are transformers' own business, as is a name that the package does not hold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import transformers
from huggingface_hub import is_offline_mode
from transformers import pipelines
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from ._weights import OWNER, is_packaged_name, not_packaged, packaged_folder, weights_package

_READERS = (
    *(transformers.AutoConfig, transformers.AutoTokenizer, transformers.AutoImageProcessor, transformers.AutoProcessor),
    *(transformers.AutoFeatureExtractor, AutoVideoProcessor, transformers.AutoBackbone, _BaseAutoModelClass),
    *(transformers.PreTrainedConfig, transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase),
    *(ImageProcessingMixin, FeatureExtractionMixin, transformers.ProcessorMixin, transformers.GenerationConfig),
)
"""Where transformers takes a name. Other classes inherit from these, or call them."""
_OF_THE_HUB = ("revision", "subfolder", "force_download")
_READ, _DONE = "from_pretrained", "_knows_packaged_names"


def register_names() -> None:
    """Make transformers find installed models by name; safe to call again."""
    for cls in _READERS:
        method = cls.__dict__.get(_READ)
        if method is not None and not hasattr(method.__func__, _DONE):
            setattr(cls, _READ, classmethod(_of_folder(method.__func__)))
    if not hasattr(pipelines.get_task, _DONE):
        pipelines.get_task = _task_of(pipelines.get_task)


def _of_folder(read: Callable[..., Any]) -> Callable[..., Any]:
    """A `from_pretrained` that reads the folder of an installed model, given its name."""

    @functools.wraps(read)
    def from_pretrained(cls: type, *arguments: Any, **options: Any) -> Any:
        named = "pretrained_model_name_or_path"
        source = arguments[0] if arguments else options.get(named)
        if not isinstance(source, str) or not is_packaged_name(source) or any(map(options.get, _OF_THE_HUB)):
            return read(cls, *arguments, **options)
        folder = packaged_folder(source)
        if folder is not None:
            if arguments:
                return read(cls, str(folder), *arguments[1:], **options)
            return read(cls, **{**options, named: str(folder)})
        try:
            return read(cls, *arguments, **options)
        except OSError as error:
            if options.get("local_files_only") or is_offline_mode():
                raise OSError(str(not_packaged(source))) from error
            raise

    setattr(from_pretrained, _DONE, True)
    return from_pretrained


def _task_of(ask_hub: Callable[..., str]) -> Callable[..., str]:
    """What a pipeline is for that was given a model and no task; transformers asks the Hub."""

    @functools.wraps(ask_hub)
    def get_task(model: str, *arguments: Any, **options: Any) -> str:
        package = weights_package()
        if package is None or not isinstance(model, str) or packaged_folder(model) is None:
            return ask_hub(model, *arguments, **options)
        return package.manifest()[model.removeprefix(OWNER)]["pipeline_tag"]

    setattr(get_task, _DONE, True)
    return get_task
