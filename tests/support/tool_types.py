"""Types of parameters and results for tests of tools."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import Enum

from pydantic import BaseModel


class Place(BaseModel):
    city: str
    day: datetime.date | None = None


class Unit(Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclass
class FieldPath:
    city: str
    country: str = "NO"
