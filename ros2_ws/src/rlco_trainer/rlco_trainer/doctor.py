"""`rlco doctor`: go or no-go for this machine, each check with its cause and remedy."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlco_common.contract import load_contract
from rlco_common.errors import RlcoError

MIN_FREE_GB = 5.0
MIN_SHM_MB = 64.0
MIN_MESA = (24, 3)


@dataclass(frozen=True)
class Finding:
    """One check. `go` None: advice only. remedy: what to do when it is not a go."""

    check: str
    go: bool | None
    detail: str
    remedy: str = ""


def diagnose(contract: str = "panda_tabletop") -> list[Finding]:
    """Run every check; none of them raises."""
    checks: list[Callable[[], Finding]] = [
        _python, _ros, _dds, _shared_memory, _rendering, _gpu, _disk, _versions, lambda: _contract(contract),
    ]
    return [_guarded(check) for check in checks]


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a broken machine breaks in unforeseen ways; the other checks must still run
        return Finding(getattr(check, "__name__", "check").strip("_"), False, f"{type(error).__name__}: {error}",
                       "run 'make setup' again; if it stays, report this line")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", sys.version_info[:2] == (3, 12), f"{version} at {sys.prefix}",
                   "ROS 2 Jazzy is built for Python 3.12; run 'make setup'")


def _ros() -> Finding:
    try:
        import rclpy
    except ImportError as error:
        return Finding("ROS 2", False, f"rclpy cannot be imported: {error}",
                       "source /opt/ros/jazzy/setup.bash, or run 'make setup' without a sourced ROS for the wheels")
    distro = os.environ.get("ROS_DISTRO")
    source = f"{distro} installation" if distro else "Jazzy wheels in the venv"
    good = distro in (None, "jazzy")
    return Finding("ROS 2", good, f"{source}, {Path(rclpy.__file__).parent}", "this workspace targets ROS 2 Jazzy")


_DDS_PROBE = """
import sys, time
from rlco_common.ros import prepare_environment
prepare_environment()
import rclpy
from std_msgs.msg import String
rclpy.init()
node = rclpy.create_node("doctor_" + sys.argv[1])
got = []
node.create_subscription(String, "/rlco_doctor/" + ("b" if sys.argv[1] == "a" else "a"), got.append, 10)
publisher = node.create_publisher(String, "/rlco_doctor/" + sys.argv[1], 10)
end = time.monotonic() + 12
extra = 0
while time.monotonic() < end and extra < 5:
    publisher.publish(String(data="x"))
    rclpy.spin_once(node, timeout_sec=0.1)
    extra += bool(got)
sys.exit(not got)
"""


def _dds() -> Finding:
    """Two processes must hear each other on this host, in an otherwise unused domain."""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(90 + os.getpid() % 10), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    probes = [subprocess.Popen([sys.executable, "-c", _DDS_PROBE, side], env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True) for side in "ab"]
    errors = [probe.communicate(timeout=40)[1] for probe in probes]
    if all(probe.returncode == 0 for probe in probes):
        return Finding("DDS on loopback", True, "two processes exchanged messages")
    last = next((text.strip().splitlines()[-1] for text in errors if text.strip()), "no message arrived within 12 s")
    return Finding("DDS on loopback", False, last,
                   "bring the loopback interface up ('ip link set lo up'), allow UDP on 127.0.0.1 and multicast on lo")


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("shared memory", None, "no /dev/shm", "raw images fall back to UDP and may be lost")
    free = shutil.disk_usage(path).free / 1e6
    stale = len(list(path.glob("fastrtps_*")))
    return Finding("shared memory", None if free < MIN_SHM_MB else True, f"{free:.0f} MB free in /dev/shm, {stale} DDS files",
                   "give the container more ('--shm-size=256m' or '--ipc=host'); each process takes 9 MB")


def _rendering() -> Finding:
    remedy = "run 'make setup' as root or with sudo (Mesa 24.3+ Vulkan drivers; Debian 12: from bookworm-backports)"
    probe = subprocess.run([sys.executable, "-c", "import sapien; print(sapien.render.get_device_summary())"],
                           capture_output=True, text=True, timeout=120)
    devices = re.findall(r"GPU: (.+)\n\s+Supported: (\d)", probe.stdout)
    supported = [name for name, flag in devices if flag == "1"]
    if not supported:
        found = ", ".join(name for name, _ in devices) or (probe.stderr.strip().splitlines() or ["none"])[-1]
        return Finding("Vulkan rendering", False, f"no supported device (found: {found})", remedy)
    mesa = _mesa_version()
    software = any("llvmpipe" in name for name in supported)
    detail = ", ".join(supported) + (f", Mesa {'.'.join(map(str, mesa))}" if mesa and software else "")
    if software and mesa and mesa < MIN_MESA:
        return Finding("Vulkan rendering", False, detail, remedy)
    return Finding("Vulkan rendering", True, detail)


def _mesa_version() -> tuple[int, ...] | None:
    if shutil.which("dpkg-query") is None:
        return None
    shown = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "mesa-vulkan-drivers"], capture_output=True, text=True)
    found = re.match(r"(\d+)\.(\d+)", shown.stdout)
    return tuple(map(int, found.groups())) if found else None


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("GPU", True, f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    return Finding("GPU", None, f"none; {os.cpu_count()} CPU cores", "not needed for the compact policies; large VLAs need one")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return Finding("disk", free >= MIN_FREE_GB, f"{free:.0f} GB free in {Path.cwd()}", f"free at least {MIN_FREE_GB:.0f} GB")


def _versions() -> Finding:
    names = ("torch", "transformers", "lerobot", "mani_skill", "numpy", "rosbags")
    return Finding("packages", True, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))


def _contract(source: str) -> Finding:
    try:
        contract = load_contract(source)
    except RlcoError as error:
        return Finding("contract", False, str(error), "fix the field that is named")
    return Finding("contract", True, f"{contract.name} {contract.hash}: {len(contract.cameras)} camera(s), "
                                     f"{contract.control_rate_hz:g} Hz, tasks {', '.join(contract.tasks)}")


def render(findings: list[Finding]) -> str:
    """The findings as text, one line each, remedies below what is not a go."""
    marks = {True: "go   ", False: "NO-GO", None: "note "}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.go]}  {finding.check:<17} {finding.detail}")
        if finding.go is not True and finding.remedy:
            lines.append(f"       {'':<17} -> {finding.remedy}")
    failed = sum(finding.go is False for finding in findings)
    lines.append("all good" if not failed else f"{failed} check(s) failed")
    return "\n".join(lines)
