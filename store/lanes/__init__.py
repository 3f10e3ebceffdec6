"""Many deciders over one log: lanes, publications, and what waits for its number."""

from equipoise.store.lanes.contract import (
    Hub,
    HubError,
    HubRefusedError,
    LaneEndedError,
    LaneStatus,
    Lease,
    Parcel,
    Publication,
    Report,
    Spent,
    Term,
    TermEndedError,
    Tickets,
)

__all__ = [
    "Hub",
    "HubError",
    "HubRefusedError",
    "LaneEndedError",
    "LaneStatus",
    "Lease",
    "Parcel",
    "Publication",
    "Report",
    "Spent",
    "Term",
    "TermEndedError",
    "Tickets",
]
