"""The promise of the scheduler, line by line: its checks, and the broken schedulers (`mutant*.py`) that each of them catches.

Checks are functions of how a scheduler is made. `test_promise.py` runs each over random traces, `test_mutants.py` over broken
schedulers. A trace is a `World`: flows that stay and flows that come, go, empty and change weight; items in several
buckets, larger than a pass, urgent, redelivered, cancelled in time or too late; passes in flight, that take other than predicted;
an engine with room for part of a pass.

- service of two backlogged flows within the bound, over every interval: check_service_bound
    - by price (no noise): IgnoresWeights, CountsJobs, CreditsEveryPass, CreditsUntilAllCanPay, BorrowsWithoutLimit
    - by price with one bucket, where nobody borrows: BorrowsWithOneBucket
    - by measured cost (noise, adapters): NeverTruesUp, TruesUpTwice
    - from when weights changed: check_new_weights: IgnoresNewWeights, CreditsAtTheNewWeight
- long-run shares 1 : 2 : 4 within 2 %: check_long_run_shares: NeverTruesUp, IgnoresWeights
- charges sum to the measured time, nobody is charged more than for running alone: check_charges (one pass),
  check_nobody_pays_more_than_alone (a trace): EqualSplit, EveryonePaysAll, ChargesThePrediction
- never idle with runnable work, never an empty plan: check_never_idle: WaitsForCredit, WaitsForRoom, PlansNothing
- a full pass whenever compatible fronts, within debt, suffice
    - in any trace: check_nothing_more_would_fit: NeverBorrows, BorrowsHalf, StopsShort
    - with enough of everything: check_full_passes: NeverBorrows, StopsShort
- a rare shape served within (number of buckets) passes: check_rare_bucket: StaysInItsBucket
- no gain from splitting work, or many small items against few large: check_no_gain_by_splitting: RoundsDown, CountsJobs;
  check_service_bound (sizes apart): CountsJobs
- no gain from toggling idle and active: check_no_gain_by_coming_and_going: PaysTheAbsent;
  check_coming_and_going_loses_on_average: GiftForComing
- redelivered or cancelled items charged once or not at all: check_charged_once: TruesUpTwice, ChargesTheCancelled,
  SparesTheCancelled; check_settled_once: ChargesTwice
- a newcomer's first service within the stated wait: check_newcomer (in passes): StartsInDebt; check_overtaking (what the
  others may get before it): StartsInDebt, CreditsEveryPass, CreditsUntilAllCanPay
- D ≤ 0 whenever empty, also after a late true-up: check_deficits: KeepsCredit, KeepsLateCredit
    - and debt stays, cancelled items change nothing: ForgivesDebt, ChargesTheCancelled, NeverTruesUp;
      check_debt_survives_idleness: ForgivesDebt
- order within a flow: check_order: SmallestFirst
"""

from .books import (
    check_charged_once,
    check_charges,
    check_debt_survives_idleness,
    check_deficits,
    check_nobody_pays_more_than_alone,
    check_settled_once,
)
from .gain import (
    check_coming_and_going_loses_on_average,
    check_no_gain_by_coming_and_going,
    check_no_gain_by_splitting,
)
from .passes import (
    check_full_passes,
    check_never_idle,
    check_nothing_more_would_fit,
    check_order,
    check_rare_bucket,
)
from .service import (
    check_long_run_shares,
    check_new_weights,
    check_newcomer,
    check_overtaking,
    check_service_bound,
)
from .words import AMPLE, KnownCost, Make, deficit, flow_queue, item, must, own
from .world import Case

__all__ = [
    "AMPLE",
    "Case",
    "KnownCost",
    "Make",
    "check_charged_once",
    "check_charges",
    "check_coming_and_going_loses_on_average",
    "check_debt_survives_idleness",
    "check_deficits",
    "check_full_passes",
    "check_long_run_shares",
    "check_never_idle",
    "check_new_weights",
    "check_newcomer",
    "check_no_gain_by_coming_and_going",
    "check_no_gain_by_splitting",
    "check_nobody_pays_more_than_alone",
    "check_nothing_more_would_fit",
    "check_order",
    "check_overtaking",
    "check_rare_bucket",
    "check_service_bound",
    "check_settled_once",
    "deficit",
    "flow_queue",
    "item",
    "must",
    "own",
]
