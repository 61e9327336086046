"""How processes on several machines find one another: which of them this one is, and over which of the machine's interfaces.

torchrun and SLURM say both by the environment. By hand it is said by MASTER_ADDR, MASTER_PORT and NODE_RANK on every machine, as torch's
other launchers have it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from contextlib import suppress

from lightning.fabric.utilities.rank_zero import rank_zero_only

from stillroom.errors import InputError

_SIOCGIFADDR = 0x8915  # Linux: the address of an interface
_BY_HAND = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
_STARTED = ("LOCAL_RANK", "SLURM_PROCID")  # who started this process started the others, too


def settle_rank(devices: int) -> int:
    """This process's number among all, which the environment says before they have met; Lightning is told, too.

    Args:
        devices: processes of each machine.
    """
    environment = {name: int(value) for name, value in os.environ.items() if name.endswith(("RANK", "PROCID")) and value.isdecimal()}
    of_node = environment.get("NODE_RANK", environment.get("GROUP_RANK", 0)) * devices + environment.get("LOCAL_RANK", 0)
    number = environment.get("RANK", of_node if "LOCAL_RANK" in environment else environment.get("SLURM_PROCID", of_node))
    rank_zero_only.rank = number  # type: ignore[attr-defined]
    return number


def is_speaker() -> bool:
    """Whether this process is the first of its machine."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def find_way(num_nodes: int) -> None:
    """Where there are several machines: looks that it is known where they meet, and names gloo the interface that leads there.

    Left to itself, gloo takes the interface of the address that the machine's own name stands for. That is 127.0.1.1 on a Debian as it is
    installed, where no other machine reaches it.

    Raises:
        InputError: it is not said where they meet, or not clear which interface leads to the others.
    """
    if num_nodes < 2:
        return
    if not any(name in os.environ for name in _STARTED):
        if missing := [name for name in _BY_HAND if not os.environ.get(name)]:
            expected = f"torchrun or SLURM, or on every machine {', '.join(_BY_HAND)} (0 on the first) in the environment"
            raise InputError("num_nodes", f"{num_nodes}, without {', '.join(missing)}", expected)
        node = os.environ["NODE_RANK"]
        if not node.isdecimal() or int(node) >= num_nodes:
            raise InputError("NODE_RANK", node, f"a whole number from 0 to {num_nodes - 1}, another one on each machine")
    if os.environ.get("GLOO_SOCKET_IFNAME") or not os.environ.get("MASTER_ADDR"):
        return
    with suppress(ImportError):  # elsewhere than on Linux gloo finds its own way
        import fcntl

        found = _interface(os.environ["MASTER_ADDR"], os.environ.get("MASTER_PORT", "0"), fcntl)
        if found is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = found


def _interface(address: str, port: str, fcntl: object) -> str | None:
    """The name of the interface that leads to an address; where that is a name of this machine for itself, the only one that leads out."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((address, int(port) if port.isdecimal() and int(port) else 9))  # sends nothing
            mine = str(asking.getsockname()[0])
    except (OSError, ValueError, OverflowError) as error:
        raise InputError("MASTER_ADDR", address, f"the first machine's address, which this one can reach ({error})") from None
    there = _addresses(fcntl)
    if not ipaddress.ip_address(mine).is_loopback:
        return next((name for name, own in there.items() if own == mine), None)
    outward = [name for name, own in there.items() if not ipaddress.ip_address(own).is_loopback]
    if len(outward) == 1:
        return outward[0]
    if not outward:
        return None
    got = f"{address}, which stands for {mine} here"
    raise InputError("MASTER_ADDR", got, f"an address that the other machines reach, or GLOO_SOCKET_IFNAME: one of {', '.join(outward)}")


def _addresses(fcntl: object) -> dict[str, str]:
    """The IPv4 address of each interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))  # type: ignore[attr-defined]
                found[name] = socket.inet_ntoa(answer[20:24])
    return found
