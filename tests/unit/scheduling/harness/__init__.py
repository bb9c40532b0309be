"""What the scheduler's tests share.

The checks are functions of how a scheduler is made, so that `test_mutants.py` can hand them broken ones.
"""

from .books import (
    check_charged_once,
    check_charges,
    check_debt_survives_idleness,
    check_deficits,
    check_nobody_pays_more_than_alone,
    check_settled_once,
)
from .gain import check_no_gain_by_coming_and_going, check_no_gain_by_splitting
from .passes import (
    check_full_passes,
    check_never_idle,
    check_nothing_more_would_fit,
    check_order,
    check_rare_bucket,
)
from .service import check_long_run_shares, check_newcomer, check_overtaking, check_service_bound
from .words import AMPLE, KnownCost, Make, deficit, item, must, ring
from .world import Case

__all__ = [
    "AMPLE",
    "Case",
    "KnownCost",
    "Make",
    "check_charged_once",
    "check_charges",
    "check_debt_survives_idleness",
    "check_deficits",
    "check_full_passes",
    "check_long_run_shares",
    "check_never_idle",
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
    "item",
    "must",
    "ring",
]
