"""The modality of an activation record (paper, section 3.1; `docs/artifacts.md`)."""

from __future__ import annotations

from enum import IntEnum


class Modality(IntEnum):
    """Code of one record or token. Stored as int8."""

    DROPPED = -1  # padding, BOS, and by config the system prompt: never a record
    VISUAL = 0
    TEXTUAL = 1
    JOINT = 2  # dual encoders only: both halves of the pair view are present
