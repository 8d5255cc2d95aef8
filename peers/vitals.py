"""How the machine under a peer is: its memory, and its heat where that can be read."""

from dataclasses import dataclass

import psutil

__all__ = ["Vitals", "read_vitals"]

PROCESSORS = (
    "coretemp",
    "k10temp",
    "zenpower",
    "cpu_thermal",
    "soc_thermal",
    "acpitz",
)  # sensors, the best known first
PLAUSIBLE = (1.0, 125.0)  # °C; sensors that are not connected say 0, or -273


@dataclass(frozen=True, slots=True)
class Vitals:
    """Bytes, and °C where known. `free`: of the machine, or of the container if that is less."""

    own: int  # this process, which does the network
    free: int
    temperature: float | None = None


def read_vitals(free: int) -> Vitals:
    return Vitals(psutil.Process().memory_info().rss, free, _processor_temperature())


def _processor_temperature() -> float | None:
    """Of its hottest part; None where there is no sensor, as on a virtual machine, on macOS and on Windows."""
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    sensors = psutil.sensors_temperatures()
    low, high = PLAUSIBLE
    for name in PROCESSORS:
        readings = [entry.current for entry in sensors.get(name, ()) if low <= entry.current <= high]
        if readings:
            return float(max(readings))
    return None
