#!/bin/bash
# Runs a command in the workspace of the robot image.
set -e
source /opt/ros/jazzy/setup.bash
source /opt/rlco/ros2_ws/install/setup.bash
exec "$@"
