from glob import glob

from setuptools import find_packages, setup

package_name = "rlco_trainer"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/config", glob("config/*.yaml")),
        (f"share/{package_name}/launch", glob("launch/*.launch.xml")),
        (f"share/{package_name}/templates", glob("templates/*.j2")),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="RLCo maintainers",
    maintainer_email="maintainers@rlco.org",
    description="Bags to datasets, Stage I and Stage II of RL-based sim-real co-training, evaluation and reports.",
    license="Apache-2.0",
    entry_points={"console_scripts": ["rlco = rlco_trainer.cli:main", "trainer = rlco_trainer.nodes.trainer_node:main",
                                      "evaluator_node = rlco_trainer.nodes.evaluator_node:main"]},
)
