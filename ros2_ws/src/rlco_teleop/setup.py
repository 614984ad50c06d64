from glob import glob

from setuptools import find_packages, setup

package_name = "rlco_teleop"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["console/page/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/config", glob("config/*.yaml")),
        (f"share/{package_name}/launch", glob("launch/*.launch.xml")),
        (f"share/{package_name}/layouts", glob("layouts/*")),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    maintainer="RLCo maintainers",
    maintainer_email="maintainers@rlco.org",
    description="The robot side: operator devices and console, the command gate, and the episode recorder.",
    license="Apache-2.0",
    entry_points={"console_scripts": [
        "gate_node = rlco_teleop.nodes.gate_node:main",
        "teleop_node = rlco_teleop.nodes.teleop_node:main",
        "recorder_node = rlco_teleop.nodes.recorder_node:main",
        "arm_adapter_node = rlco_teleop.nodes.arm_adapter_node:main",
        "camera_node = rlco_teleop.nodes.camera_node:main",
        "start_node = rlco_teleop.nodes.start_node:main",
        "console_node = rlco_teleop.nodes.console_node:main",
    ]},
)
