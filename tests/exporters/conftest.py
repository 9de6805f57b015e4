from collections.abc import Iterator

import pytest

from ganserve import proof


@pytest.fixture(scope="package", autouse=True)
def _fewer_probes() -> Iterator[None]:
    """An eighth of the latents is enough to test what is done with them; the command line's tests have them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "PROBES", 512)
        yield
