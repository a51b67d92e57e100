"""Many clients at once: each gets the answer to its own sequence."""

import itertools

from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import serving
from tests.robustness.harness.traffic import Traffic

EACH = 200  # inputs of a client
CLIENTS = 64
NETWORKS = {"digits": 120, "letters": 60, "letters-live": 60, "vowels": 60}  # longest


@row("B8", "64 clients x 200 inputs of their own, four networks", full=CLIENTS * EACH)
def no_crosstalk(tally: Tally, amount: int) -> None:
    each = amount // len(NETWORKS)
    asked = [
        reference.some(name, each, longest, seed=place)
        for place, (name, longest) in enumerate(NETWORKS.items())
    ]
    mixed = list(itertools.chain(*zip(*asked, strict=True)))
    with serving(tally) as service:
        traffic = Traffic(service.port, mixed, CLIENTS, count=len(mixed) // CLIENTS)
        with traffic:
            traffic.join()
        worst = 0.0
        for told in traffic.told:
            worst = max(worst, told.question.difference(told.body))
            tally.check(told.right, f"status {told.status}, off by {worst:.1e}")
        tally.figure("worst difference", worst)
