import pytest


@pytest.fixture(autouse=True, scope="session")
def token_cache(tmp_path_factory):
    """Tokens of texts go where pytest clears up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENCRATE_CACHE", str(tmp_path_factory.mktemp("tokens")))
        yield
