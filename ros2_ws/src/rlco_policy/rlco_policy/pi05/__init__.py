"""pi-0.5 as LeRobot implements it, with ReinFlow exploration, chain log-probability and a critic."""
