"""What the kernel says of memory. Linux only."""

from pathlib import Path


def resident(file: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = line.endswith(f" {file}")
        elif inside and words[0] == "Rss:":
            found += int(words[1]) << 10
    return found


def rss_of(pid: int) -> int:
    """Bytes of all pages that a process has in memory, those of mapped files included."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))
