"""Launch files, parameters and the bridge of the action; the nodes are `kineflow.deploy.ros2`."""
