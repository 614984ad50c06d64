from glob import glob

from setuptools import find_packages, setup

package_name = "rlco_sim_bridge"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/config/domains", glob("config/domains/*.yaml")),
        (f"share/{package_name}/config/tasks", glob("config/tasks/*.yaml")),
        (f"share/{package_name}/launch", glob("launch/*.launch.xml")),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="RLCo maintainers",
    maintainer_email="maintainers@rlco.org",
    description="Digital twins in ManiSkill, the stand-in robot, scripted experts, and the node that puts a scene on "
    "the robot's topics.",
    license="Apache-2.0",
    entry_points={"console_scripts": ["bridge_node = rlco_sim_bridge.nodes.bridge_node:main"]},
)
