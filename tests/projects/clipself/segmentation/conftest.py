from collections.abc import Iterator

import pytest

from tests.segments import SegmentsOnDisk, segments_on_disk


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SegmentsOnDisk]:
    with segments_on_disk(tmp_path_factory.mktemp("segments")) as place:
        yield place
