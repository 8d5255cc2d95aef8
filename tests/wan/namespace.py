"""Network namespaces without names: they last as long as a descriptor of one is open or somebody is inside."""

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["inside", "kill_inside", "new_host", "why_not"]

TUN = Path("/dev/net/tun")
HERE = "/proc/thread-self/ns/net"
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
SET_INTERFACE, IS_TUN, WITHOUT_HEADER = 0x400454CA, 0x0001, 0x1000
GET_FLAGS, SET_FLAGS, SET_ADDRESS, SET_MASK, SET_MTU, SET_QUEUE = 0x8913, 0x8914, 0x8916, 0x891C, 0x8922, 0x8943
UP = 0x1
DEVICE = b"wan0"
WAITING = 4096  # packets that may wait for the router
ROUNDS = 100  # of looking for processes: they may start others while they are killed


def why_not() -> str | None:
    """Why hosts can't be made on this machine, as a sentence; None where they can."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"{TUN} can't be opened by this user"
    if shutil.which("nsenter") is None:
        return "there is no nsenter (of util-linux) on the PATH"
    before = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", NEW_NETWORK)
        _call("setns", before, NEW_NETWORK)
    except OSError as error:
        return f"a network namespace can't be made ({error.strerror}); only root may"
    finally:
        os.close(before)
    return None


def new_host(address: str, mask: str, mtu: int) -> tuple[int, int]:
    """Descriptors of a new namespace, and of its only way out: a TUN device with this IPv4 address, up."""
    before = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", NEW_NETWORK)
        try:
            return os.open(HERE, os.O_RDONLY | os.O_CLOEXEC), _new_device(address, mask, mtu)
        finally:
            _call("setns", before, NEW_NETWORK)
    finally:
        os.close(before)


@contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """This thread, and threads and processes that it starts meanwhile, are in there."""
    before = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", there, NEW_NETWORK)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _call("setns", before, NEW_NETWORK)
    finally:
        os.close(before)


def kill_inside(namespaces: list[int], spared: set[int]) -> None:
    """SIGKILL to every process in one of these, but for the `spared`."""
    marks = {_mark(f"/proc/self/fd/{one}") for one in namespaces}
    for _ in range(ROUNDS):
        found = [pid for pid in _processes() if pid not in spared and _mark(f"/proc/{pid}/ns/net") in marks]
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _mark(path: str) -> tuple[int, int] | None:
    """What is the same for all who are in one namespace; None if its process is gone, or is none of ours."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _new_device(address: str, mask: str, mtu: int) -> int:
    device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, SET_INTERFACE, struct.pack("16sH22x", DEVICE, IS_TUN | WITHOUT_HEADER))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((SET_ADDRESS, address), (SET_MASK, mask)):
            inet = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, struct.pack("16s16s8x", DEVICE, inet))
        fcntl.ioctl(control, SET_MTU, struct.pack("16si20x", DEVICE, mtu))
        fcntl.ioctl(control, SET_QUEUE, struct.pack("16si20x", DEVICE, WAITING))
        for name in (b"lo", DEVICE):
            flags: int = struct.unpack("16sH22x", fcntl.ioctl(control, GET_FLAGS, struct.pack("16s24x", name)))[1]
            fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH22x", name, flags | UP))
    return device


def _call(function: str, *arguments: int) -> None:
    """A call of the C library: Python has these of version 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        code = ctypes.get_errno() or errno.EINVAL
        raise OSError(code, os.strerror(code), function)
