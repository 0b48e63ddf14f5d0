"""The fixtures that make small stores."""

from tests.cache.conftest import (  # noqa: F401 (fixtures)
    build,
    make_images,
    make_manifest,
    make_record,
    open_writer,
)
