"""What this machine has: its processor, the memory that this process may still take, and the versions of libraries."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

from ctplab import __version__

CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that can still be had: of the machine, of the container, and of what ``ulimit -v`` allows."""
    import psutil  # comes with accelerate

    found = [psutil.virtual_memory().available]
    try:
        allowed = int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text())
        found.append(allowed)
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            found.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(found))


def processor() -> str:
    """The processor's name, as the system tells it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def versions(*libraries: str) -> dict[str, str]:
    """The versions of ctplab and of these libraries, as manifests record what wrote them."""
    return {"ctplab": __version__, **{name: version(name) for name in libraries}}
