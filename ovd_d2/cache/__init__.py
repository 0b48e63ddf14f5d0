"""The offline store of proposals and their teacher embeddings.

Every loader worker imports this package, so it stays light; `ovd_d2.engine.cache_builder` builds.
"""

from ovd_d2.cache.compatibility import check_compatible, coverage_problems, identity_problems
from ovd_d2.cache.identity import (
    dataset_fingerprint,
    dataset_info,
    entry_problems,
    id_problems,
)
from ovd_d2.cache.manifest import CacheError, DamagedFileError, DatasetInfo, Manifest, ShardInfo
from ovd_d2.cache.store import CachedProposals, EmbeddingCache, ProposalStore, RecordStore
from ovd_d2.cache.verify import verify_store
from ovd_d2.cache.writer import RecordWriter, Written

__all__ = [
    "CacheError",
    "CachedProposals",
    "DamagedFileError",
    "DatasetInfo",
    "EmbeddingCache",
    "Manifest",
    "ProposalStore",
    "RecordStore",
    "RecordWriter",
    "ShardInfo",
    "Written",
    "check_compatible",
    "coverage_problems",
    "dataset_fingerprint",
    "dataset_info",
    "entry_problems",
    "id_problems",
    "identity_problems",
    "verify_store",
]
