"""Everything that imports rclpy or speaks of the ROS graph."""
