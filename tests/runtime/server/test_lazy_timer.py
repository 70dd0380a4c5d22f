"""A deadline that is moved on, cleared, or passed."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

from gptoss.runtime.server.lazy_timer import LazyTimer


class Patient:
    def __init__(self) -> None:
        self.late: list[float] = []
        self.timer = LazyTimer(self.note)

    def note(self) -> None:
        self.late.append(time.monotonic())


async def until_late(patient: Patient, n: int) -> None:
    async with asyncio.timeout(30):
        while len(patient.late) < n:
            await asyncio.sleep(0.005)


async def test_a_deadline_that_passes_is_reported_once() -> None:
    patient, begun = Patient(), time.monotonic()
    patient.timer.set(0.05)
    await until_late(patient, 1)
    assert patient.late[0] - begun >= 0.04
    await asyncio.sleep(0.1)
    assert len(patient.late) == 1
    patient.timer.set(0.01)
    await until_late(patient, 2)


async def test_a_deadline_that_is_moved() -> None:
    patient = Patient()
    patient.timer.set(0.02)
    begun = time.monotonic()
    patient.timer.set(0.3)
    await until_late(patient, 1)
    assert patient.late[0] - begun >= 0.28, "moved on: the first timer only looks"
    patient.timer.set(60)
    patient.timer.set(0.02)
    await until_late(patient, 2)


async def test_a_deadline_that_is_cleared() -> None:
    patient = Patient()
    patient.timer.set(0.02)
    patient.timer.clear()
    await asyncio.sleep(0.06)
    patient.timer.set(0.02)
    patient.timer.close()
    await asyncio.sleep(0.06)
    assert patient.late == []


async def test_it_keeps_nothing_alive() -> None:
    patient = Patient()
    patient.timer.set(60)
    freed = weakref.ref(patient)
    gc.collect()
    gc.disable()
    try:
        del patient
        assert freed() is None
    finally:
        gc.enable()


async def test_moving_it_makes_no_timers() -> None:
    loop, patient = asyncio.get_running_loop(), Patient()
    before = len(loop._scheduled)  # type: ignore[attr-defined]
    for _ in range(100):
        patient.timer.set(60)
    assert len(loop._scheduled) <= before + 1  # type: ignore[attr-defined]
