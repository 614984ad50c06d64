"""Digital twins, the stand-in robot, scripted experts and the sim bridge."""
