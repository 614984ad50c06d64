"""From bags and twins to LeRobot datasets, and from those to training batches."""
