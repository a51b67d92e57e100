"""The whole checklist: importing these modules registers their rows in `ROWS`."""

from tests.robustness.disclosure import (  # noqa: F401
    api_keys,
    internals,
    metric_counts,
    openapi,
    secrecy,
)
from tests.robustness.endurance import refusal_memory, steady_memory  # noqa: F401
from tests.robustness.harness.checklist import ROWS
from tests.robustness.inputs import (  # noqa: F401
    data_files,
    decompression,
    generated_requests,
    large_bodies,
    malformed_bodies,
    mutated_bodies,
    raw_http,
    refusals,
    tensor_shapes,
)
from tests.robustness.lifecycle import (  # noqa: F401
    crashes,
    endless_loads,
    expensive_bundles,
    promotions,
    shutdown,
    startup,
    startup_failures,
)
from tests.robustness.load import (  # noqa: F401
    deadlines,
    disconnects,
    fairness,
    isolation,
    overload,
    resource_attacks,
    slow_clients,
    tls_handshakes,
)

__all__ = ["ROWS"]
