from glob import glob

from setuptools import find_packages, setup

package_name = "rlco_common"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/config", glob("config/*.yaml") + glob("config/*.xml")),
        (f"share/{package_name}/launch", glob("launch/*.yaml")),
    ],
    install_requires=["setuptools", "numpy", "pyyaml"],
    zip_safe=True,
    maintainer="RLCo maintainers",
    maintainer_email="maintainers@rlco.org",
    description="The contract of a robot cell: tasks, action space, topics, codecs, gate maths, run records.",
    license="Apache-2.0",
)
