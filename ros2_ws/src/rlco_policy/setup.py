from glob import glob

from setuptools import find_packages, setup

package_name = "rlco_policy"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/config", glob("config/*.yaml")),
        (f"share/{package_name}/launch", glob("launch/*.launch.xml")),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="RLCo maintainers",
    maintainer_email="maintainers@rlco.org",
    description="Vision-language-action policies behind one interface, and the node that runs them on the robot.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": ["policy_node = rlco_policy.nodes.policy_node:main"],
        "rlco.policies": [
            "compact_flow = rlco_policy.compact.flow:CompactFlow",
            "compact_token = rlco_policy.compact.token:CompactToken",
            "openvla = rlco_policy.openvla.policy:OpenVla",
            "pi05 = rlco_policy.pi05.policy:Pi05",
        ],
    },
)
