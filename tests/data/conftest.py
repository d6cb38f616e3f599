import datasets
import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """What `datasets` makes of parquet files, and the tokens of texts, go where pytest clears up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setenv("OPENCRATE_CACHE", str(tmp_path_factory.mktemp("tokens")))
        yield
