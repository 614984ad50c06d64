"""The container files agree with the tree and with each other. No image is built here: there is no daemon."""

import json
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from rlco_common.launch_xml import evaluate_launch_file, parse_assignments
from rlco_trainer.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "ros2_ws" / "src"
COMPOSE = ROOT / "docker" / "compose.yaml"
PAGE = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
FILES = {path.name: path for path in (ROOT / "docker").glob("*.Dockerfile")}
INSTRUCTIONS = {"ARG", "FROM", "RUN", "CMD", "COPY", "ENV", "ENTRYPOINT", "SHELL", "USER", "WORKDIR"}
# Keys of the Compose specification; those that we use.
SERVICE_KEYS = {"image", "build", "network_mode", "ipc", "user", "init", "stop_signal", "stop_grace_period", "environment",
                "volumes", "profiles", "command", "devices", "group_add", "ulimits", "device_cgroup_rules", "deploy"}
DEVCONTAINER_KEYS = {"name", "build", "runArgs", "hostRequirements", "remoteUser", "containerEnv", "postCreateCommand",
                     "customizations"}
# Top-level modules of the distributions in docker/requirements-robot.txt, and of the apt packages of the manifests' keys.
ROBOT_MODULES = {"simplejpeg", "rosbags", "mcap", "pinocchio", "coal", "ompl", "numpy", "yaml", "aiohttp", "msgpack", "cv2"}


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, its text) with continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def apt_packages(path: Path) -> set[str]:
    runs = " ; ".join(text for name, text in instructions(path) if name == "RUN")
    return {word for part in re.findall(r"apt-get install (.*?)(?:&&|;|$)", runs) for word in part.split()
            if not word.startswith("-")}


def copied(path: Path) -> list[tuple[list[str], str]]:
    """(sources, destination) of every COPY from the build context."""
    words = [[word for word in shlex.split(text) if not word.startswith("--chmod")] for name, text in instructions(path)
             if name == "COPY"]
    return [(each[:-1], each[-1]) for each in words]


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_dockerfiles_are_well_formed(path):
    found = instructions(path)
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[0][0] in ("ARG", "FROM") and found[-1][0] == "CMD"
    arguments = dict(text.split("=", 1) for name, text in found if name == "ARG")
    stages = []
    for name, text in found:
        if name == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], text.split()[0])
            assert image in stages or (":" in image and not image.endswith(":latest")), f"{image} has no fixed tag"
            stages += text.split()[2:]
    header = path.read_text().split("\nFROM ")[0]
    for name, default in arguments.items():
        assert re.search(rf"^#   {name} ", header, re.MULTILINE), f"{name} is not explained in {path.name}"
        assert f"| `{name}` | `{default}` |" in PAGE
    assert [text for name, text in found if name == "USER"] == ["ubuntu"], "containers do not run as root"


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_everything_that_is_copied_exists_and_is_sent_to_the_daemon(path):
    ignored = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")}
    assert copied(path)
    for sources, _ in copied(path):
        for source in sources:
            assert (ROOT / source).exists(), f"{path.name} copies {source}"
            assert not any(source == entry or source.startswith(entry + "/") for entry in ignored)


def test_every_apt_package_is_accounted_for():
    """By a key of a manifest, by scripts/setup.sh, or by a reason on the page."""
    rendering = re.search(r'local packages="(.*?)"', (ROOT / "scripts" / "setup.sh").read_text())[1].split()
    explained = dict(re.findall(r"^\| `([\w.-]+)` \| (robot|training|both) \|", PAGE, re.MULTILINE))
    keys = {node.text for path in SOURCE.glob("*/package.xml") for node in ElementTree.parse(path).getroot()
            if node.tag.endswith("depend")}
    used = {name.removesuffix(".Dockerfile"): apt_packages(path) for name, path in FILES.items()}
    assert used["robot"] and used["training"]
    for image, packages in used.items():
        for package in packages:
            assert (package in keys or package in rendering or explained.get(package) in (image, "both")), (image, package)
    assert set(explained) <= used["robot"] | used["training"]


def test_the_robot_image_has_the_packages_that_its_packages_need():
    manifests = {Path(source).parent.name for sources, _ in copied(FILES["robot.Dockerfile"]) for source in sources
                 if source.endswith("package.xml")}
    sources = {Path(source).name for sources, _ in copied(FILES["robot.Dockerfile"]) for source in sources
               if (ROOT / source).is_dir()}
    assert manifests == sources
    for package in sources:
        depends = {node.text for node in ElementTree.parse(SOURCE / package / "package.xml").getroot()
                   if node.tag.endswith("depend")}
        assert {name for name in depends if name.startswith("rlco_")} <= sources


def test_versions_of_the_robot_image_are_those_of_the_requirements():
    def pins(path):
        return {line.strip() for line in path.read_text().splitlines() if "==" in line}

    assert pins(ROOT / "docker" / "requirements-robot.txt") <= pins(ROOT / "requirements.txt")


IMPORTS = """
import importlib, importlib.metadata, json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"not in the robot image: {name}", name=name)
sys.meta_path.insert(0, Absent())
from rlco_common.ros import prepare_environment
prepare_environment()
for module in MODULES:
    importlib.import_module(module)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_the_robot_s_nodes_import_nothing_that_the_robot_image_lacks():
    """No torch, no simulator, and nothing of the requirements that the image does not install."""
    modules = [f"{package}.nodes.{path.stem}" for package in ("rlco_teleop", "rlco_policy")
               for path in sorted((SOURCE / package / package / "nodes").glob("*_node.py"))]
    modules += ["rlco_teleop.start_planner", "rlco_teleop.cameras.driver", "rlco_policy.remote.client"]
    modules = [name for name in modules if (SOURCE / name.split(".")[0] / (name.replace(".", "/") + ".py")).is_file()]
    required = {re.split(r"[=\[]", line)[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()
                if "==" in line}
    names = {"pyyaml": "yaml", "mcap-ros2-support": "mcap_ros2", "pin": "pinocchio", "imageio-ffmpeg": "imageio_ffmpeg",
             "colcon-common-extensions": "", "setuptools": "setuptools", "pytest-timeout": "", "pytest-xdist": ""}
    absent = {names.get(name, name) for name in required} - ROBOT_MODULES - {"", "setuptools"}
    absent |= {"sapien", "gymnasium", "scipy"}
    assert {"torch", "mani_skill", "lerobot"} <= absent and len(modules) >= 8
    script = f"ABSENT = {absent!r}\nMODULES = {modules!r}\n{IMPORTS}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rclpy" in json.loads(done.stdout)


# -- compose


@pytest.fixture(scope="module")
def services() -> dict:
    """The services as Compose sees them: fragments merged, variables replaced by their defaults."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", COMPOSE.read_text())
    assert "${" not in text
    return yaml.safe_load(text)["services"]


def test_compose_uses_documented_keys_only(services):
    top = yaml.safe_load(COMPOSE.read_text())
    assert {key for key in top if not key.startswith("x-")} == {"name", "services"}
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        assert service["profiles"] and all(isinstance(word, str) for word in service["command"])
        assert (service["network_mode"], service["ipc"]) == ("host", "host")
        assert service["image"].count(":") == 1 and not service["image"].endswith(":latest")
        build = service["build"]
        assert (COMPOSE.parent / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        if "target" in build:
            assert f" AS {build['target']}\n" in (ROOT / build["dockerfile"]).read_text()
        if "deploy" in service:
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert set(device) == {"driver", "count", "capabilities"}


def test_every_command_of_a_service_exists(services):
    installed = apt_packages(FILES["robot.Dockerfile"])
    for name, service in services.items():
        match service["command"]:
            case ["ros2", "launch", package, file, *arguments]:
                assert evaluate_launch_file(SOURCE / package / "launch" / file, parse_assignments(arguments)), name
            case ["ros2", "run", package, executable] if (SOURCE / package).is_dir():
                assert f"{executable} = " in (SOURCE / package / "setup.py").read_text(), name
            case ["ros2", "run", package, _]:
                assert f"ros-jazzy-{package}" in installed, name
            case ["rlco", *arguments]:
                assert build_parser().parse_args(arguments).run, name
            case other:
                raise AssertionError(f"{name}: {other}")


def test_a_graph_in_containers_has_one_gate(services):
    def gates(profiles):
        found = []
        for name, service in services.items():
            if set(service["profiles"]) & profiles:
                words = service["command"]
                if words[:2] == ["ros2", "launch"]:
                    nodes = evaluate_launch_file(SOURCE / words[2] / "launch" / words[3], parse_assignments(words[4:]))
                    found += [name for node in nodes if node.executable == "gate_node"]
                elif words[-1] == "gate_node":
                    found.append(name)
        return found

    others = {"console", "gamepad", "spacemouse", "deploy"}
    assert gates({"cell"} | others) == ["cell"]
    assert gates({"rehearsal"} | others) == ["gate"]


def test_profiles_and_variables_are_explained(services):
    for profile in {profile for service in services.values() for profile in service["profiles"]}:
        assert f"| `{profile}` |" in PAGE
    variables = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    table = PAGE.split("| variable |")[1].split("\n\n")[0]
    assert variables == set(re.findall(r"`([A-Z][A-Z_]+)`", table))


def test_the_images_of_the_page_are_those_of_compose(services):
    for image, file in {(service["image"], service["build"]["dockerfile"]) for service in services.values()}:
        assert f"docker build -f {file} -t {image} ." in PAGE


def test_the_dev_container_is_made_of_what_is_there():
    config = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert set(config) <= DEVCONTAINER_KEYS
    dockerfile = (ROOT / ".devcontainer" / config["build"]["dockerfile"]).resolve()
    assert f" AS {config['build']['target']}\n" in dockerfile.read_text()
    assert (ROOT / config["postCreateCommand"].split()[-1]).is_file()
