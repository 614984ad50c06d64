# syntax=docker/dockerfile:1
# The robot's computer: ROS 2 Jazzy, MoveIt, cv_bridge, drivers of operator devices, and the workspace. No torch: a policy
# runs on another machine, or in the training image, and is reached through its server.
#
#   docker build -f docker/robot.Dockerfile -t rlco-robot .
#
# Build arguments:
#   ROS_IMAGE   base image, with ROS 2 Jazzy on Ubuntu 24.04
ARG ROS_IMAGE=ros:jazzy-ros-base-noble
FROM ${ROS_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/rlco

# What no manifest of the workspace asks for; docs/docker.md says what each is for.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3-venv \
        ros-jazzy-cv-bridge \
        ros-jazzy-foxglove-bridge \
        ros-jazzy-joy \
        ros-jazzy-moveit \
        ros-jazzy-moveit-py \
        ros-jazzy-spacenav \
        v4l-utils \
    && rm -rf /var/lib/apt/lists/*

# Manifests and pins first: a change of the code alone installs nothing again.
COPY ros2_ws/src/rlco_common/package.xml ros2_ws/src/rlco_common/package.xml
COPY ros2_ws/src/rlco_sim_bridge/package.xml ros2_ws/src/rlco_sim_bridge/package.xml
COPY ros2_ws/src/rlco_teleop/package.xml ros2_ws/src/rlco_teleop/package.xml
COPY ros2_ws/src/rlco_policy/package.xml ros2_ws/src/rlco_policy/package.xml
RUN apt-get update \
    && rosdep update --rosdistro jazzy \
    && DEBIAN_FRONTEND=noninteractive rosdep install --from-paths ros2_ws/src --ignore-src --rosdistro jazzy -y \
    && rm -rf /var/lib/apt/lists/*

# Libraries without a rosdep key, with the versions of requirements.txt. The environment sees the system's packages, so that
# numpy stays the one that cv_bridge was built with; colcon runs in it, so that the nodes do, too.
COPY docker/requirements-robot.txt docker/requirements-robot.txt
RUN python3 -m venv --system-site-packages venv \
    && venv/bin/pip install --no-cache-dir -r docker/requirements-robot.txt

COPY ros2_ws/src/rlco_common ros2_ws/src/rlco_common
COPY ros2_ws/src/rlco_sim_bridge ros2_ws/src/rlco_sim_bridge
COPY ros2_ws/src/rlco_teleop ros2_ws/src/rlco_teleop
COPY ros2_ws/src/rlco_policy ros2_ws/src/rlco_policy
RUN source /opt/ros/jazzy/setup.bash \
    && cd ros2_ws \
    && PATH=/opt/rlco/venv/bin:$PATH colcon build --merge-install --event-handlers console_direct-

COPY --chmod=755 docker/entrypoint.sh /entrypoint.sh
ENV ROS_HOME=/tmp/ros
RUN mkdir /data && chown ubuntu:ubuntu /data
USER ubuntu
WORKDIR /data
ENTRYPOINT ["/entrypoint.sh"]
CMD ["ros2", "launch", "rlco_teleop", "cell.launch.xml", "--show-args"]
