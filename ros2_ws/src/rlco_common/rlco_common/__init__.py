"""The contract of a robot cell and everything that both the robot side and the learning side agree on."""
