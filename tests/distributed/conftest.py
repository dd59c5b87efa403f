from collections.abc import Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Two processes for all tests of this folder."""
    pool = Pool()
    yield pool
    pool.close()
