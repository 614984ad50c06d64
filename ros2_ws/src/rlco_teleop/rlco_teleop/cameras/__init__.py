"""Cameras that have no ROS driver of their own: V4L2 devices and video files."""
