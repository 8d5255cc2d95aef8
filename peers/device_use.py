"""How full and how hot the device is that an executor computes on. Asks torch, so this is for the executor process."""

from dataclasses import dataclass

import torch

from peers.stats import DeviceUse

__all__ = ["DeviceGauge"]


@dataclass(slots=True)
class DeviceGauge:
    """Of a CUDA device; of others there is nothing to tell beyond what the machine itself tells."""

    device: torch.device
    has_temperature: bool = True

    def read(self) -> DeviceUse | None:
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        return DeviceUse(int(free), int(total), self._temperature())

    def _temperature(self) -> float | None:
        """°C, where NVIDIA's management library is installed and answers; else it is not asked again."""
        if not self.has_temperature:
            return None
        try:
            return float(torch.cuda.temperature(self.device))
        except Exception:  # whatever the library raises that torch asks, one that is not there included
            self.has_temperature = False
            return None
